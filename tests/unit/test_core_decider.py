"""Questions of the C core answered by the decisions, through the real structures of nodeseal_core.h."""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from nodeseal.contracts.refusal import KINDS
from nodeseal.mesh import decide
from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.federated import Federated
from nodeseal.mesh.model import Mesh, Mode, Phase, Service, ServicePort, Workload, WorkloadName
from nodeseal.mesh.reasons import WhyLimited
from nodeseal.mesh.service import Affinity, Front, Way
from nodeseal.mesh.spiffe import PathId
from nodeseal.splice import native
from nodeseal.splice.choice import SAMPLE_MS
from nodeseal.splice.decider import INTERNAL_ERROR, NO_MESH_STATE, Decider, State
from support.core_fakes import FakeLib, make_native

SHIPPER, PIPELINE, SIEM = (WorkloadName("default", name) for name in ("shipper", "pipeline", "siem"))


def workload(name: WorkloadName, address: str, phase: Phase = Phase.ENROLLED, mode: Mode = Mode.PERMISSIVE) -> Workload:
    return Workload(name, name.name, "node1", (IPv4Address(address),), None, True, mode, phase)


MESH = Mesh.build(
    "example.org",
    [
        workload(SHIPPER, "10.0.0.1"),
        workload(PIPELINE, "10.0.0.2"),
        workload(SIEM, "10.0.0.3", Phase.ABSENT, Mode.STRICT),
    ],
    [Service(WorkloadName("default", "vip"), (IPv4Address("10.9.0.1"),), (ServicePort(80, 8080),), (PIPELINE, SIEM))],
)


class Asked:
    """A decider with one question and one answer, both real structures."""

    def __init__(self, mesh: Mesh | None = MESH, names: dict[int, WorkloadName] | None = None) -> None:
        module, _lib = make_native()
        core = native.Core(module, workers=1, trust_domain="example.org")
        self.ffi = module.ffi
        self.decider = Decider(core, (names or {1: SHIPPER, 2: PIPELINE, 3: SIEM}).get)
        self.decider.state = State(mesh, 7) if mesh is not None else None
        self.questions = native.Questions(self.ffi, 2)
        self.question = self.questions.array[1]
        self.written = native.Answer(self.ffi)
        self.answer = self.written.structure

    def ask(
        self, kind: int, *, workload: int = 1, source: str = "10.0.0.1", destination: str = "", **fields: Any
    ) -> Any:
        self.question.id, self.question.workload, self.question.kind = 99, workload, kind
        host, _colon, port = destination.rpartition(":")
        native.pack_address(self.question.source, ip_address(source), 0)
        native.pack_address(self.question.destination, ip_address(host), int(port))
        for name, value in fields.items():
            setattr(self.question, name, value)
        self.decider.answer(self.questions[1], self.written)
        return self.answer

    def reason(self) -> str:
        return native.text(self.ffi, self.answer.reason)


def test_outbound_to_an_enrolled_workload_is_a_tunnel_to_its_identity() -> None:
    asked = Asked()
    answer = asked.ask(native.ASK_OUTBOUND, destination="10.0.0.2:8080")
    endpoint = answer.endpoints[0]
    assert (answer.id, answer.epoch, answer.verdict, answer.endpoint_count) == (99, 7, native.ALLOW, 1)
    assert (endpoint.tunnel, native.endpoint_text(endpoint.address)) == (1, "10.0.0.2:8080")
    assert native.text(asked.ffi, endpoint.identity) == "spiffe://example.org/ns/default/sa/pipeline"


def test_plaintext_endpoint_carries_its_reason_and_no_identity_of_an_answer_before() -> None:
    asked = Asked()
    asked.ask(native.ASK_OUTBOUND, destination="10.0.0.2:8080")
    endpoint = asked.ask(native.ASK_OUTBOUND, destination="10.0.0.3:8080").endpoints[0]
    assert (endpoint.tunnel, native.text(asked.ffi, endpoint.identity)) == (0, "")
    assert native.text(asked.ffi, endpoint.reason) == "destination-not-enrolled"


def test_service_becomes_its_endpoints() -> None:
    asked = Asked()
    answer = asked.ask(native.ASK_OUTBOUND, destination="10.9.0.1:80")
    texts = [native.endpoint_text(answer.endpoints[i].address) for i in range(answer.endpoint_count)]
    assert sorted(texts) == ["10.0.0.2:8080", "10.0.0.3:8080"]


def test_more_endpoints_than_fit_become_a_sample_without_repetition() -> None:
    many = [workload(WorkloadName("default", f"w{i}"), f"10.1.{i // 250}.{i % 250 + 1}") for i in range(300)]
    service = Service(
        WorkloadName("default", "vip"), (IPv4Address("10.9.0.1"),), (ServicePort(80, 80),), tuple(w.key for w in many)
    )
    asked = Asked(Mesh.build("example.org", [workload(SHIPPER, "10.0.0.1"), *many], [service]))
    answer = asked.ask(native.ASK_OUTBOUND, destination="10.9.0.1:80")
    texts = {native.endpoint_text(answer.endpoints[i].address) for i in range(32)}
    assert answer.endpoint_count == len(texts) == 32
    assert answer.valid_ms == SAMPLE_MS


def test_answers_begin_with_any_of_a_services_endpoints() -> None:
    asked = Asked()
    first = {
        native.endpoint_text(asked.ask(native.ASK_OUTBOUND, destination="10.9.0.1:80").endpoints[0].address)
        for _ in range(100)
    }
    assert first == {"10.0.0.2:8080", "10.0.0.3:8080"}
    assert asked.answer.valid_ms == 0


FRONT = Front(
    Way.CLUSTER,
    4,
    (IPv4Address("10.9.0.2"),),
    80,
    80,
    tuple(ApplicationAddress(IPv4Address(0x0A020000 + last), 8080) for last in range(200)),
)


def with_front(affinity: Affinity | None) -> Asked:
    """shipper dials 10.9.0.2:80, which has 200 endpoints."""
    service = Service(WorkloadName("shop", "web"), (), (), (), (FRONT,), affinity)
    return Asked(Mesh.build("example.org", [workload(SHIPPER, "10.0.0.1")], [service]))


def test_of_many_endpoints_of_a_front_each_is_named_sooner_or_later() -> None:
    asked, found = with_front(None), set()
    for _ in range(100):
        answer = asked.ask(native.ASK_OUTBOUND, destination="10.9.0.2:80")
        assert (answer.endpoint_count, answer.valid_ms) == (32, SAMPLE_MS)
        found |= {native.endpoint_text(answer.endpoints[i].address) for i in range(32)}
    assert len(found) == 200


def test_a_client_with_an_affinity_gets_one_endpoint_of_all_and_keeps_it() -> None:
    asked, found = with_front(Affinity(600)), []
    for _ in range(10):
        answer = asked.ask(native.ASK_OUTBOUND, destination="10.9.0.2:80")
        assert (answer.endpoint_count, answer.valid_ms) == (1, 60_000)
        found.append(native.endpoint_text(answer.endpoints[0].address))
    assert len(set(found)) == 1


def test_what_is_open_already_changes_nothing_of_an_affinity() -> None:
    asked = with_front(Affinity(600))
    answer = asked.ask(native.ASK_OUTBOUND, destination="10.9.0.2:80", established=1)
    assert (answer.endpoint_count, answer.valid_ms) == (1, 0)


def test_refused_connections_are_logged_by_the_workloads_name(caplog: pytest.LogCaptureFixture) -> None:
    module, lib = make_native()
    core = native.Core(module, workers=1, trust_domain="example.org")
    decider = Decider(core, {1: SHIPPER}.get)
    rows = [(1, 0, 20000, 153), (1, 3, 0, 2), (9, 0, 5, 5)]
    lib.notices = [dict(zip(("workload", "limit", "value", "refused"), row, strict=True)) for row in rows]
    decider.log_limits()
    assert [record.getMessage() for record in caplog.records] == [
        "workload default/shipper: limit reached: connections (20000), 153 refused",
        "workload default/shipper: limit reached: descriptors, 2 refused",
    ]


def test_refused_peers_are_logged_by_the_workloads_name(caplog: pytest.LogCaptureFixture) -> None:
    module, lib = make_native()
    decider = Decider(native.Core(module, workers=1, trust_domain="example.org"), {1: SHIPPER}.get)
    peer = {"ip": [0] * 10 + [255, 255, 10, 0, 0, 9], "port": 0}
    own = {"ip": [0] * 10 + [255, 255, 10, 0, 0, 1], "port": 8080}
    inbound = {"workload": 1, "direction": 1, "count": 1, "source": peer, "destination": own}
    outbound = {"workload": 1, "direction": 0, "count": 2, "source": own, "destination": peer | {"port": 15008}}
    lib.refusal_notices = [
        inbound | {"kind": 0, "reason": b"peer shows no certificate", "count": 3, "untold": 968},
        inbound | {"kind": 1, "status": 401, "peer": b"spiffe://x/y", "reason": b"wrong-trust-domain"},
        inbound | {"kind": 2, "reason": b"strict"},
        outbound | {"kind": 0, "reason": b"peer has another identity than expected"},
        inbound | {"workload": 9, "reason": b"of a workload that is gone"},
    ]
    decider.log_refusals()
    assert [record.getMessage() for record in caplog.records] == [
        "workload default/shipper: refused 10.0.0.9, handshake to 10.0.0.1:8080: peer shows no certificate (3 times); "
        "968 refusals of others are not told",
        "workload default/shipper: refused 10.0.0.9, stream 401 to 10.0.0.1:8080 of spiffe://x/y: wrong-trust-domain",
        "workload default/shipper: refused 10.0.0.9, plaintext to 10.0.0.1:8080: strict",
        "workload default/shipper: handshake with 10.0.0.9:15008 failed: peer has another identity than expected "
        "(2 times)",
    ]


def test_the_kinds_of_refusals_are_the_cores() -> None:
    header = (Path(__file__).parents[2] / "cext" / "include" / "nodeseal_core.h").read_text(encoding="utf-8")
    kinds = [word.lower() for word in re.findall(r"NS_REFUSED_([A-Z]+) =", header)]
    assert kinds == list(KINDS)
    assert f"NS_REFUSAL_KINDS = {len(KINDS)}," in header


def test_the_words_for_limits_are_the_cores() -> None:
    source = (Path(__file__).parents[2] / "cext" / "src" / "limits" / "quota.c").read_text(encoding="utf-8")
    assert re.findall(r'"(limit-[a-z]+)"', source) == [word.value for word in WhyLimited]
    header = (Path(__file__).parents[2] / "cext" / "include" / "nodeseal_core.h").read_text(encoding="utf-8")
    assert f"NS_LIMITS = {len(native.LIMITED)}," in header


def test_refusal_carries_its_reason() -> None:
    asked = Asked()
    assert asked.ask(native.ASK_OUTBOUND, destination="10.0.0.2:15008").verdict == native.REFUSE
    assert asked.reason() == "mesh-port"


def test_a_port_that_leads_nowhere_is_unavailable_so_that_live_flows_are_not_cut() -> None:
    asked = Asked()
    assert asked.ask(native.ASK_OUTBOUND, destination="10.9.0.1:81").verdict == native.UNAVAILABLE
    assert asked.reason() == "no-such-port"


def test_inbound_tunnel_of_the_right_peer_is_allowed() -> None:
    asked = Asked()
    peer = b"spiffe://example.org/ns/default/sa/shipper"
    answer = asked.ask(native.ASK_INBOUND_TUNNEL, workload=2, destination="10.0.0.2:8080", peer=peer)
    assert (answer.verdict, asked.reason()) == (native.ALLOW, "")


def test_inbound_tunnel_for_another_address_is_unavailable() -> None:
    asked = Asked()
    peer = b"spiffe://example.org/ns/default/sa/shipper"
    answer = asked.ask(native.ASK_INBOUND_TUNNEL, workload=2, destination="10.0.0.9:8080", peer=peer)
    assert (answer.verdict, asked.reason()) == (native.NOT_YET, "wrong-address")


def test_peer_identity_that_cannot_be_read_is_refused() -> None:
    asked = Asked()
    for peer in (b"spiffe://example.org/y", b"spiffe://X/y", b"\xff", b""):
        answer = asked.ask(native.ASK_INBOUND_TUNNEL, workload=2, destination="10.0.0.2:8080", peer=peer)
        assert (answer.verdict, asked.reason()) == (native.REFUSE, "unknown-peer")


def test_peer_of_another_trust_domain_is_refused_whatever_its_path() -> None:
    asked = Asked()
    for peer in (b"spiffe://x/y", b"spiffe://example.com/ns/default/sa/shipper"):
        answer = asked.ask(native.ASK_INBOUND_TUNNEL, workload=2, destination="10.0.0.2:8080", peer=peer)
        assert (answer.verdict, asked.reason()) == (native.REFUSE, "wrong-trust-domain")


def test_peer_of_a_federated_domain_is_judged_by_its_whole_path() -> None:
    theirs = PathId("other.org", "/billing/api")
    ledger = replace(workload(SIEM, "10.0.0.3"), trust_domain="other.org", spiffe_id=theirs)
    mesh = Mesh.build(
        "example.org",
        [workload(SHIPPER, "10.0.0.1"), workload(PIPELINE, "10.0.0.2"), ledger],
        federated=[Federated("other.org", "x")],
    )
    asked = Asked(mesh)
    for peer, source, verdict, reason in (
        (b"spiffe://other.org/billing/api", "10.0.0.3", native.ALLOW, ""),
        (b"spiffe://other.org/billing/web", "10.0.0.3", native.REFUSE, "identity-mismatch"),
        (b"spiffe://other.org/ns/default/sa/siem", "10.0.0.3", native.REFUSE, "identity-mismatch"),
        (b"spiffe://other.org/billing/web", "10.9.9.9", native.ALLOW, ""),
        (b"spiffe://other.org/billing//web", "10.9.9.9", native.REFUSE, "unknown-peer"),
        (b"spiffe://other.org", "10.9.9.9", native.REFUSE, "unknown-peer"),
        (b"spiffe://example.org/billing/web", "10.9.9.9", native.REFUSE, "unknown-peer"),
        (b"spiffe://third.org/billing/web", "10.9.9.9", native.REFUSE, "wrong-trust-domain"),
    ):
        answer = asked.ask(native.ASK_INBOUND_TUNNEL, workload=2, source=source, destination="10.0.0.2:8080", peer=peer)
        assert (answer.verdict, asked.reason()) == (verdict, reason), peer
    answer = asked.ask(native.ASK_OUTBOUND, destination="10.0.0.3:8080")
    assert asked.ffi.string(answer.endpoints[0].identity) == b"spiffe://other.org/billing/api"


def test_inbound_plaintext_allowed_says_why_there_is_no_mtls() -> None:
    asked = Asked()
    answer = asked.ask(native.ASK_INBOUND_PLAINTEXT, workload=2, source="192.0.2.1", destination="10.0.0.2:8080")
    assert (answer.verdict, asked.reason()) == (native.ALLOW, "source-not-in-mesh")


def test_strict_workload_refuses_plaintext() -> None:
    asked = Asked()
    answer = asked.ask(native.ASK_INBOUND_PLAINTEXT, workload=3, source="192.0.2.1", destination="10.0.0.3:80")
    assert (answer.verdict, asked.reason()) == (native.REFUSE, "strict")


def test_established_plaintext_stays() -> None:
    asked = Asked()
    asked.ask(native.ASK_OUTBOUND, destination="10.0.0.2:8080", established=1)
    assert native.text(asked.ffi, asked.answer.endpoints[0].reason) == "opened-before-enrolment"


def test_without_mesh_state_nothing_is_allowed() -> None:
    asked = Asked(mesh=None)
    answer = asked.ask(native.ASK_OUTBOUND, destination="192.0.2.1:80")
    assert (answer.verdict, answer.epoch, asked.reason()) == (native.NOT_YET, 0, NO_MESH_STATE)


def test_question_for_a_removed_workload_is_unavailable() -> None:
    asked = Asked()
    answer = asked.ask(native.ASK_OUTBOUND, workload=44, destination="10.0.0.2:80")
    assert (answer.verdict, asked.reason()) == (native.NOT_YET, "unknown-workload")


def test_exception_in_a_decision_is_answered_unavailable_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_arguments: object, **_names: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(decide, "outbound", broken)
    asked = Asked()
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            answer = asked.ask(native.ASK_OUTBOUND, destination="10.0.0.2:80")
    assert (answer.id, answer.verdict, answer.endpoint_count) == (99, native.UNAVAILABLE, 0)
    assert asked.reason() == INTERNAL_ERROR
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]


def test_unknown_kind_of_question_is_an_internal_error() -> None:
    asked = Asked()
    assert asked.ask(17, destination="10.0.0.2:80").verdict == native.UNAVAILABLE


def test_long_reason_is_cut_between_characters() -> None:
    assert native.fit("ü" * 60, 96) == ("ü" * 47).encode()
    assert native.fit("x" * 95, 96) == b"x" * 95
    assert native.fit("a\0b", 96) == b"ab"


def test_questions_and_answers_are_laid_out_as_in_the_header() -> None:
    ffi = make_native()[0].ffi
    sizes = [ffi.sizeof(f"struct ns_{name}") for name in ("question", "endpoint", "answer")]
    answer_size = native.ANSWER_HEAD.size + native.ENDPOINTS_MAX * native.ENDPOINT.size
    assert sizes == [native.QUESTION_SIZE, native.ENDPOINT.size, answer_size]
    assert ffi.offsetof("struct ns_question", "peer") == native.QUESTION_HEAD.size
    assert ffi.offsetof("struct ns_answer", "endpoints") == native.ANSWER_HEAD.size
    constants = (native.IDENTITY_MAX, native.REASON_MAX, native.ENDPOINTS_MAX)
    assert constants == (FakeLib.NS_IDENTITY_MAX, FakeLib.NS_REASON_MAX, FakeLib.NS_ENDPOINTS_MAX)


def test_a_question_is_read_field_by_field() -> None:
    ffi = make_native()[0].ffi
    questions = native.Questions(ffi, 2)
    structure = questions.array[1]
    structure.id, structure.workload, structure.kind, structure.established = 2**63, 7, native.ASK_INBOUND_TUNNEL, 1
    native.pack_address(structure.source, IPv4Address("10.0.0.1"), 1)
    native.pack_address(structure.destination, IPv6Address("fd00::1"), 65535)
    structure.peer = b"spiffe://a/ns/b/sa/c"
    assert questions[1] == native.Question(
        2**63,
        7,
        native.ASK_INBOUND_TUNNEL,
        True,
        IPv4Address("10.0.0.1"),
        IPv6Address("fd00::1"),
        65535,
        b"spiffe://a/ns/b/sa/c",
    )


def test_an_answer_is_written_field_by_field() -> None:
    ffi = make_native()[0].ffi
    answer = native.Answer(ffi)
    answer.set_endpoint(0, IPv4Address("10.0.0.1"), 80, identity="spiffe://a/ns/b/sa/c")
    answer.set_endpoint(1, IPv6Address("fd00::1"), 81, reason="why")
    answer.fill(2**63, 9, native.ALLOW, "said", endpoints=2)
    written = answer.structure
    assert (written.id, written.epoch, written.verdict, written.endpoint_count) == (2**63, 9, native.ALLOW, 2)
    assert native.text(ffi, written.reason) == "said"
    rows = [
        (native.endpoint_text(row.address), row.tunnel, native.text(ffi, row.identity), native.text(ffi, row.reason))
        for row in (written.endpoints[0], written.endpoints[1])
    ]
    assert rows == [("10.0.0.1:80", 1, "spiffe://a/ns/b/sa/c", ""), ("[fd00::1]:81", 0, "", "why")]


def test_an_identity_that_is_too_long_is_refused_not_cut() -> None:
    answer = native.Answer(make_native()[0].ffi)
    with pytest.raises(ValueError, match="too long"):
        answer.set_endpoint(0, IPv4Address("10.0.0.1"), 80, identity="x" * native.IDENTITY_MAX)


def test_addresses_cross_in_both_directions() -> None:
    module, _lib = make_native()
    structure = module.ffi.new("struct ns_address *")
    native.pack_address(structure, IPv4Address("10.1.2.3"), 80)
    assert bytes(structure.ip) == b"\0" * 10 + b"\xff\xff\x0a\x01\x02\x03"
    assert native.unpack_address(structure) == (IPv4Address("10.1.2.3"), 80)
    native.pack_address(structure, IPv6Address("fd00::1"), 443)
    assert native.endpoint_text(structure) == "[fd00::1]:443"


def test_decision_thread_answers_and_ends() -> None:
    module, lib = make_native()
    core = native.Core(module, workers=1, trust_domain="example.org")
    decider = Decider(core, {1: SHIPPER}.get)
    decider.state = State(MESH, 7)
    decider.start()

    def fill(question: Any) -> None:
        question.id, question.workload, question.kind = 5, 1, native.ASK_OUTBOUND
        native.pack_address(question.destination, IPv4Address("10.9.0.1"), 81)

    lib.questions.put(fill)
    answer = lib.answers.get(timeout=10)
    decider.stop_asking()
    decider.join()
    assert answer == {"id": 5, "epoch": 7, "verdict": native.UNAVAILABLE, "reason": "no-such-port"}


def test_all_waiting_questions_are_answered_in_order() -> None:
    module, lib = make_native()
    decider = Decider(native.Core(module, workers=1, trust_domain="example.org"), {1: SHIPPER}.get)
    decider.state = State(MESH, 7)

    def fill(question: Any, number: int) -> None:
        question.id, question.workload, question.kind = number, 1, native.ASK_OUTBOUND
        native.pack_address(question.destination, IPv4Address("10.9.0.1"), number)

    for number in range(1, 201):
        lib.questions.put(functools.partial(fill, number=number))
    decider.start()
    answers = [lib.answers.get(timeout=10)["id"] for _ in range(200)]
    decider.stop_asking()
    decider.join()
    assert answers == list(range(1, 201))
