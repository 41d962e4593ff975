"""The contract between agents and cores: against C's structures, and against what the version before it said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodeseal.contracts import core
from nodeseal.contracts.refusal import KINDS, Refusal
from nodeseal.mesh.limits import Limits
from nodeseal.splice import native
from nodeseal.splice.control_server import ControlServer, Session
from support.core_fakes import make_ffi, make_native

RECORDED = Path(__file__).parent / "recorded" / "core-protocol-4.jsonl"
"""What an agent and a core of protocol 4 said to each other in a lab, one exchange a line, private keys left out."""

PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----"


@dataclass(frozen=True)
class Exchange:
    """A recorded request and its answer."""

    request: dict[str, Any]
    request_descriptors: int
    answer: dict[str, Any]
    answer_descriptors: int

    @property
    def operation(self) -> str:
        """Its name."""
        return str(self.request["op"])


def recorded() -> Iterator[Exchange]:
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        yield Exchange(**json.loads(line))


def named(operation: str) -> list[Exchange]:
    return [one for one in recorded() if one.operation == operation]


GOOD = [one for one in recorded() if one.answer["ok"]]
REQUESTS = {core.operation_name(one): one for one in core.OPERATIONS}


def covers(ours: object, theirs: object) -> bool:
    """Whether all that is in `theirs` is in `ours` as well."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and all(key in ours and covers(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(covers, ours, theirs))
    return ours == theirs


def test_every_operation_of_the_version_before_was_recorded() -> None:
    since = {"trust_bundle", "trust_bundles", "revocations", "anchors", "refusals", "subscribe", "workload_addresses"}
    assert {one.operation for one in GOOD} == set(REQUESTS) - since


@pytest.mark.parametrize("exchange", GOOD, ids=lambda one: one.operation)
def test_recorded_request_is_read_whole(exchange: Exchange) -> None:
    request = core.read_request(json.dumps(exchange.request).encode())
    assert type(request) is REQUESTS[exchange.operation]
    assert covers(json.loads(core.encode(request)), exchange.request)


@pytest.mark.parametrize("exchange", GOOD, ids=lambda one: one.operation)
def test_recorded_answer_is_read_whole(exchange: Exchange) -> None:
    expected = core.answer_type(REQUESTS[exchange.operation])
    answer = core.read_answer(json.dumps(exchange.answer).encode(), expected)
    assert type(answer) is expected
    assert covers(json.loads(core.encode(answer)), exchange.answer)


@pytest.mark.parametrize("exchange", [one for one in recorded() if not one.answer["ok"]], ids=lambda one: one.operation)
def test_recorded_refusal_is_read_with_its_line(exchange: Exchange) -> None:
    body = json.dumps(exchange.answer).encode()
    assert core.read_answer(body, core.Answer) == core.Refused(error=exchange.answer["error"])


@pytest.mark.parametrize("exchange", GOOD, ids=lambda one: one.operation)
def test_what_is_asked_today_has_all_that_the_version_before_asked(exchange: Exchange) -> None:
    """So that an old core understands it: it takes every field of its own for granted."""
    request = core.read_request(json.dumps(exchange.request).encode())
    assert set(exchange.request) <= set(json.loads(core.encode(request)))


def test_what_is_answered_today_has_all_that_the_version_before_answered() -> None:
    """An old agent takes every field of its own for granted. It asks a new core only what keeps its form for ever."""
    ours = {
        "hello": core.Introduction(
            pid=1,
            version="1",
            protocol=core.PROTOCOL,
            generation=1,
            trust_domain="example.org",
            workloads=(core.CoreWorkload(key=1, name="a/b", identity="spiffe://c/ns/a/sa/b", addresses=("10.0.0.1",)),),
        ),
        "retire": core.Answer(),
        "live": core.LiveCounts(),
        "listeners": core.ListenerRoles(roles=(0,)),
        "stop": core.Answer(),
    }
    for operation, answer in ours.items():
        told = json.loads(core.encode(answer))
        assert told["ok"] is True
        for exchange in named(operation):
            assert set(exchange.answer) <= set(told)
            for row in exchange.answer.get("workloads", []):
                assert set(row) <= set(told["workloads"][0])


def first(operation: str, **changes: Any) -> list[tuple[dict[str, Any], int]]:
    """(the first request of that operation, how many descriptors came along)."""
    exchange = next(one for one in named(operation) if one.answer["ok"])
    return [({**exchange.request, **changes}, exchange.request_descriptors)]


def test_a_core_carries_out_what_agents_of_the_version_before_ask() -> None:
    module, lib = make_native()
    server = ControlServer(native.Core(module, workers=1, trust_domain="example.org"), trust_domain="example.org")
    session = Session()
    parts = [(one.request, 0) for one in named("mesh_part")[:3]]
    whole = [(one.request, 0) for one in named("mesh") if "full" in one.request]
    key = first("workload_add")[0][0]["key"]
    story = [
        *first("hello"),
        *first("workload_add"),
        *first("workload_limits"),
        *first("workload_credentials"),
        *first("workload_listen"),
        *first("listeners"),
        *parts,
        *whole,
        *first("mesh_read"),
        *first("connections"),
        *first("stats"),
        *first("live"),
        *first("workload_unlisten", key=key),
        *first("workload_remove", key=key),
        *first("retire"),
        *first("stop"),
    ]
    for request, descriptors in story:
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors)]
        answer, _fds = server.handle(session, json.dumps(request).encode(), fds)
        assert isinstance(answer, core.Answer), (request, answer)
    assert {request["op"] for request, _fds in story} == {one.operation for one in GOOD}
    state = server.decider.state
    assert state is not None
    assert len(state.mesh.workloads) == sum(len(part["part"].get("workloads", [])) for part, _fds in parts)
    assert [call[0] for call in lib.calls if call[0].startswith(("core_workload", "core_trust"))] == [
        "core_workload_add",
        "core_workload_limits",
        "core_trust",
        "core_workload_credentials",
        *["core_workload_listen"] * 4,
        *["core_workload_unlisten"] * 3,
        "core_workload_remove",
    ]


def test_core_says_which_anchors_its_tunnels_need() -> None:
    module, lib = make_native()
    server = ControlServer(native.Core(module, workers=1, trust_domain="example.org"), trust_domain="example.org")
    lib.anchors = [
        {"anchor": number.to_bytes(16, "big"), "connections": number, "tunnels": 1} for number in range(1, 20)
    ]
    answer, _fds = server.handle(Session(), core.encode(core.Anchors()), [])
    expected = [core.AnchorUse(anchor=f"{number:032x}", connections=number, tunnels=1) for number in range(1, 20)]
    assert answer == core.AnchorUses(anchors=tuple(expected))


class Later(core.Hello, frozen=True, kw_only=True, tag="hello"):
    """A request of a later version."""

    colour: str = "red"


def test_fields_of_later_versions_are_passed_over() -> None:
    assert core.read_request(core.encode(Later(protocol=9))) == core.Hello(protocol=9)
    body = b'{"ok":true,"connections":1,"tunnels":2,"colours":["red"]}'
    assert core.read_answer(body, core.LiveCounts) == core.LiveCounts(connections=1, tunnels=2)


def test_what_an_older_version_does_not_say_has_a_default() -> None:
    rows = core.read_answer(b'{"ok":true,"connections":[]}', core.ConnectionRows)
    assert rows == core.ConnectionRows()
    assert core.read_answer(b'{"ok":true}', core.Counters) == core.Counters()
    body = b'{"ok":true,"pid":1,"version":"0","protocol":2,"generation":1,"trust_domain":"a","workloads":' + (
        b'[{"key":1,"name":"a/b","identity":"spiffe://a/ns/b/sa/c","address":"10.0.0.1"}]}'
    )
    told = core.read_answer(body, core.Introduction)
    assert isinstance(told, core.Introduction)
    assert told.workloads[0].addresses == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"ok":"yes"}',
        b'{"ok":true,"connections":"none"}',
        b'{"ok":true,"next":-1}',
    ],
)
def test_answer_that_is_none_is_an_error_of_one_line(body: bytes) -> None:
    with pytest.raises(core.MessageError) as caught:
        core.read_answer(body, core.ConnectionRows)
    assert "\n" not in str(caught.value)


def test_answer_that_says_nothing_is_a_refusal() -> None:
    assert isinstance(core.read_answer(b"{}", core.Answer), core.Refused)


def test_refusal_of_a_core_is_one_line_whatever_it_is() -> None:
    refused = core.read_answer(b'{"ok":false,"error":"one\\ntwo"}', core.Answer)
    assert isinstance(refused, core.Refused)
    assert "\n" not in refused.error


def test_private_key_shows_in_no_text_of_its_request() -> None:
    request = core.WorkloadCredentials(key=1, identity="i", chain_pem="chain", key_pem=PRIVATE_KEY)
    assert PRIVATE_KEY not in repr(request)
    broken = core.encode(request).replace(b'"chain"', b"7")
    with pytest.raises(core.MessageError) as caught:
        core.read_request(broken)
    assert PRIVATE_KEY not in str(caught.value)


def fields(structure: str) -> set[str]:
    return {name for name, _field in make_ffi().typeof(f"struct {structure}").fields} - {"reserved"}


def test_rows_have_the_fields_of_the_structures_that_they_are_made_of() -> None:
    def named_fields(row: Any) -> set[str]:
        return set(row.__struct_fields__)

    assert named_fields(core.Connection) == fields("ns_connection")
    assert named_fields(core.CoreStats) == fields("ns_core_stats")
    assert named_fields(core.AnchorUse) == fields("ns_anchor_use")
    assert named_fields(core.Limited) == fields("ns_limited")
    assert named_fields(Refusal) == fields("ns_refusal")
    assert set(Limits.__dataclass_fields__) == fields("ns_limits")
    # What peers may send in addition is of use to the core alone; its workload is told by key and name.
    assert named_fields(core.WorkloadStats) == fields("ns_workload_stats") - {"promised"} | {"key"}


def test_words_stand_for_the_numbers_of_the_enumerations() -> None:
    def names(enumeration: str) -> list[str]:
        elements = make_ffi().typeof(f"enum {enumeration}").elements
        return [elements[number] for number in sorted(elements)]

    def spelled(prefix: str, words: Iterable[str]) -> list[str]:
        return [prefix + word.upper() for word in words]

    assert spelled("NS_", native.DIRECTIONS) == names("ns_direction")
    assert spelled("NS_STATE_", native.STATES) == names("ns_connection_state")
    assert spelled("NS_REFUSED_", KINDS) == names("ns_refusal_kind")[:-1]
    limits = ["rate" if word == "new_connections" else word for word in native.LIMITED]
    assert spelled("NS_LIMIT_", limits) == names("ns_limit")[:-1]
