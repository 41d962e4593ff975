"""The core process's control server and the agent's client of it, over a real socket with a fake C core."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest

from nodeseal.contracts import core as contract
from nodeseal.contracts.mesh import encode_difference
from nodeseal.contracts.refusal import Refusal
from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.process import CoreOptions, spawn
from nodeseal.identity.key import PrivateKey
from nodeseal.linux import control_socket
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Mesh, Mode, Phase, Service, ServicePort, Workload, WorkloadName
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.splice import control_server, native
from support.core_client import BlockingClient
from support.core_fakes import FakeLib
from support.core_server import RunningServer

SHIPPER = WorkloadName("default", "shipper")
IDENTITY = SpiffeId("example.org", "default", "shipper")
ADDRESS = IPv4Address("10.0.0.1")
ADDRESS_6 = IPv6Address("fd00::1")


def mesh(*names: str, phase: Phase = Phase.ENROLLED) -> Mesh:
    workloads = [
        Workload(
            WorkloadName("default", name), name, "n", (IPv4Address(f"10.0.0.{i}"),), None, True, Mode.STRICT, phase
        )
        for i, name in enumerate(names, start=1)
    ]
    return Mesh.build("example.org", workloads)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Running(RunningServer):
    def add(self) -> None:
        with Path("/proc/self/ns/net").open() as netns:
            self.client.workload_add(1, SHIPPER, IDENTITY, (ADDRESS, ADDRESS_6), netns_fd=netns.fileno())

    def connections(self, **wanted: Any) -> list[contract.Connection]:
        """All that are wanted, of all parts."""
        rows: list[contract.Connection] = []
        question: contract.Connections | None = contract.Connections(**wanted)
        while question is not None:
            part, first = self.client.connections(question)
            rows += part
            question = msgspec.structs.replace(question, first=first) if first is not None else None
        return rows


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(tmp_path)
    yield server
    server.end()


def calls(lib: FakeLib, name: str) -> list[tuple[object, ...]]:
    return [call for call in lib.calls if call[0] == name]


def test_hello_of_a_fresh_core_has_epoch_zero_and_no_workloads(running: Running) -> None:
    hello = running.client.hello()
    assert (hello.pid, hello.epoch, hello.trust_domain, hello.workloads) == (os.getpid(), 0, "example.org", ())


def test_hello_answers_an_agent_of_another_protocol_and_names_its_own(running: Running) -> None:
    answer = running.answer({"op": "hello", "protocol": 99})
    assert (answer["ok"], answer["protocol"]) == (True, contract.PROTOCOL)


def test_retired_core_lets_its_listeners_go_and_ends_with_its_last_connection(running: Running) -> None:
    running.lib.live = 2
    running.add()
    with socket.socket() as one:
        running.client.workload_listen(1, {0: one.fileno()})
        before = open_descriptors()
        running.client.retire(None)
        assert open_descriptors() == before - 1
        assert calls(running.lib, "core_retire") == [("core_retire",)]
        hello = running.client.hello()
        assert (hello.retired, hello.workloads[0].roles) == (True, ())
        with pytest.raises(CoreError, match="retired"):
            running.client.workload_listen(1, {0: one.fileno()})
        assert running.client.live() == (2, 1)
    running.lib.live = 0
    running.thread.join(timeout=20)
    assert not running.thread.is_alive()


def test_retired_core_brings_a_handshake_to_its_end(running: Running) -> None:
    running.lib.strangers = 1
    running.client.retire(None)
    assert not running.server.finished()
    assert running.client.live() == (0, 1)
    running.lib.strangers = 0
    running.thread.join(timeout=20)
    assert not running.thread.is_alive()


def test_retired_core_ends_when_its_time_is_over(running: Running) -> None:
    running.lib.live = 1
    running.client.retire(0)
    running.thread.join(timeout=20)
    assert not running.thread.is_alive()


def test_workload_is_added_with_its_namespace_and_address(running: Running) -> None:
    running.add()
    assert calls(running.lib, "core_workload_add") == [("core_workload_add", 1, b"\x0a\0\0\1")]
    (known,) = running.client.hello().workloads
    assert (known.key, known.name, known.identity) == (1, SHIPPER, IDENTITY)
    assert (known.addresses, known.roles) == ((ADDRESS, ADDRESS_6), ())


def test_refused_workload_is_not_kept_and_the_cores_line_is_passed_on(running: Running) -> None:
    running.lib.refuse["core_workload_add"] = "no such namespace"
    with pytest.raises(CoreError, match="no such namespace"):
        running.add()
    assert running.client.hello().workloads == ()


def test_limits_are_passed_on_to_the_core(running: Running) -> None:
    running.add()
    running.client.workload_limits(1, Limits(7, 1 << 20, 0))
    assert calls(running.lib, "core_workload_limits") == [("core_workload_limits", 1, (7, 1 << 20, 0))]
    with pytest.raises(CoreError, match="no workload with the key 2"):
        running.client.workload_limits(2, Limits())


def test_stats_tell_the_limits_and_what_was_refused(running: Running) -> None:
    running.add()
    _core, (row,) = running.client.stats()
    assert (row.memory, row.limits.connections) == (4096, 20)
    assert row.limited["connections"] == contract.Limited(refused=3, first_ms=2000, last_ms=1000)
    assert list(row.limited) == list(native.LIMITED)


def test_listeners_are_handed_over_and_back(running: Running) -> None:
    running.add()
    with socket.socket() as one, socket.socket() as two:
        running.client.workload_listen(1, {0: one.fileno(), 2: two.fileno()})
        assert running.client.hello().workloads[0].roles == (0, 2)
        back = running.client.listeners(1)
        assert {role: os.fstat(fd).st_ino for role, fd in back.items()} == {
            0: os.fstat(one.fileno()).st_ino,
            2: os.fstat(two.fileno()).st_ino,
        }
    control_socket.close_all(back.values())
    running.client.workload_unlisten(1, 0, 1)
    assert running.client.hello().workloads[0].roles == (2,)


def test_second_listener_of_a_role_is_refused(running: Running) -> None:
    running.add()
    with socket.socket() as one:
        running.client.workload_listen(1, {0: one.fileno()})
        with pytest.raises(CoreError, match="already listens"):
            running.client.workload_listen(1, {0: one.fileno()})


def test_removed_workload_leaves_no_descriptor(running: Running) -> None:
    running.client.hello()  # the server's thread has all of its own descriptors by then
    before = open_descriptors()
    running.add()
    with socket.socket() as one:
        running.client.workload_listen(1, {0: one.fileno()})
    running.client.workload_remove(1)
    assert running.client.hello().workloads == ()
    assert open_descriptors() == before


def test_credentials_reach_the_core_and_the_identity_is_remembered(running: Running) -> None:
    running.add()
    other = SpiffeId("example.org", "default", "other")
    key = PrivateKey.generate()
    running.client.workload_credentials(1, other, chain_pem="chain", private_key=key, bundle_pem="bundle")
    with key.exported() as fd:
        encoded = os.pread(fd, 4096, 0)
    given = calls(running.lib, "core_workload_credentials_from")
    assert given == [("core_workload_credentials_from", 1, b"chain", encoded)]
    assert calls(running.lib, "core_trust") == []
    assert running.client.hello().workloads[0].identity == other


@pytest.mark.parametrize("request_", [{"key_fd": True}, {}, {"key_fd": True, "key_pem": "key"}])
def test_credentials_without_a_key_or_with_two_are_refused(running: Running, request_: dict[str, Any]) -> None:
    running.add()
    answer = running.answer(
        {"op": "workload_credentials", "key": 1, "identity": str(IDENTITY), "chain_pem": "c"} | request_
    )
    assert answer == {"ok": False, "error": ANY}
    assert "needs the private key, in one descriptor or as text" in answer["error"]


def trusted(running: Running) -> list[dict[bytes, bytes]]:
    return [call[1] for call in calls(running.lib, "core_trust")]


def test_trust_anchors_reach_the_core_when_they_change(running: Running) -> None:
    for bundle in ("one", "one", "two", "one"):
        running.client.trust_bundles("example.org", {"example.org": bundle})
    running.client.trust_bundles("example.org", {"example.org": "one", "partner.example": "three"})
    own = b"example.org"
    assert trusted(running) == [
        {own: b"one"},
        {own: b"two"},
        {own: b"one"},
        {own: b"one", b"partner.example": b"three"},
    ]


def test_trust_anchors_that_were_refused_are_not_taken_for_those_in_force(running: Running) -> None:
    running.lib.refuse["core_trust"] = "the trust bundle cannot be read"
    with pytest.raises(CoreError, match="cannot be read"):
        running.client.trust_bundles("example.org", {"example.org": "one"})
    running.lib.refuse.clear()
    running.client.trust_bundles("example.org", {"example.org": "one"})
    assert len(calls(running.lib, "core_trust")) == 2


def test_trust_anchors_without_those_of_the_own_trust_domain_are_refused(running: Running) -> None:
    with pytest.raises(CoreError, match=r"without those of this core's own trust domain example.org"):
        running.client.trust_bundles("example.org", {"other.org": "one"})
    assert calls(running.lib, "core_trust") == []


@pytest.mark.parametrize(
    ("domains", "said"),
    [(["example.org", "example.org"], "that is there twice"), (["example.org", "Other"], "is not 1 to 255 characters")],
)
def test_trust_domains_that_cannot_be_are_refused(running: Running, domains: list[str], said: str) -> None:
    bundles = [{"trust_domain": domain, "bundle_pem": "one"} for domain in domains]
    answer = running.answer({"op": "trust_bundles", "bundles": bundles})
    assert not answer["ok"]
    assert said in answer["error"]
    assert calls(running.lib, "core_trust") == []


def digests(count: int, first: int = 0) -> list[str]:
    return [f"{number:032x}" for number in range(first, first + count)]


def packed(texts: list[str]) -> bytes:
    return bytes.fromhex("".join(texts))


def test_revocations_reach_the_core_at_once_however_many_parts_they_came_in(running: Running) -> None:
    many, few = digests(2 * contract.REVOCATIONS_PART + 1), digests(3, first=10**6)
    assert running.client.revocations(many, few, whole=False) == len(many)
    assert running.client.revocations([], whole=True) == 0
    assert calls(running.lib, "core_revoke") == [
        ("core_revoke", packed(many), packed(few), False),
        ("core_revoke", b"", b"", True),
    ]


def test_a_part_of_revocations_that_is_missing_changes_nothing(running: Running) -> None:
    part = {"op": "revocations", "last": False, "whole": True, "revoked": digests(1)}
    assert running.answer(part | {"number": 0})["ok"]
    answer = running.answer(part | {"number": 2, "last": True})
    assert "part 2 of the revocations came, part 1 was expected" in answer["error"]
    assert "part 1 of the revocations came" in running.answer(part | {"number": 1, "last": True})["error"]
    assert calls(running.lib, "core_revoke") == []
    assert running.answer(part | {"number": 0, "last": True})["ok"]
    assert calls(running.lib, "core_revoke") == [("core_revoke", packed(digests(1)), b"", True)]


@pytest.mark.parametrize("digest", ["", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n"])
def test_what_is_no_digest_is_refused(running: Running, digest: str) -> None:
    answer = running.answer({"op": "revocations", "number": 0, "last": True, "whole": True, "revoked": [digest]})
    assert not answer["ok"]


def test_mesh_is_in_place_before_the_epoch_moves(running: Running) -> None:
    running.client.mesh(mesh("shipper"), 5)
    assert calls(running.lib, "core_epoch") == [("core_epoch", 5, "all")]
    assert running.client.hello().epoch == 5
    assert running.client.mesh_read() == mesh("shipper")


def test_mesh_difference_is_applied(running: Running) -> None:
    old, new = mesh("shipper", "gone"), mesh("shipper", "pipeline", "siem")
    running.client.mesh(old, 5)
    assert running.client.mesh_change(old, new, 6, base=5)
    assert running.client.mesh_read() == new


def test_core_is_told_what_a_difference_concerns(running: Running) -> None:
    running.add()
    running.client.mesh(mesh("pipeline", "shipper", "siem"), 5)
    assert running.client.mesh_change(mesh("pipeline", "shipper", "siem"), mesh("pipeline", "siem"), 6, base=5)
    _whole, (_name, epoch, concern) = calls(running.lib, "core_epoch")
    assert epoch == 6
    addresses, ports, keys = concern
    # siem has the address now that was the shipper's.
    assert addresses == {IPv6Address(f"::ffff:10.0.0.{number}").packed for number in (2, 3)}
    assert (ports, keys) == (set(), {1})


def published(running: Running) -> list[tuple[str, set[str]]]:
    """What the C core was told of published addresses, in order; nothing of it is there twice."""
    told = []
    for name, packed in (call for call in running.lib.calls if call[0] in ("core_publish", "core_withdraw")):
        parts = [packed[at : at + 16] for at in range(0, len(packed), 16)]
        addresses = {str(IPv6Address(part).ipv4_mapped or IPv6Address(part)) for part in parts}
        assert len(addresses) == len(parts)
        if parts:
            told.append((name, addresses))
    running.lib.calls.clear()
    return told


def test_addresses_of_published_workloads_are_told_and_what_is_added_comes_first(running: Running) -> None:
    old, new = mesh("shipper", "gone"), mesh("shipper", "pipeline", "siem")
    running.client.mesh(old, 5)
    assert published(running) == [("core_publish", {"10.0.0.1", "10.0.0.2"})]
    assert running.client.mesh_change(old, new, 6, base=5)
    assert published(running) == [
        ("core_publish", {"10.0.0.2", "10.0.0.3"}),
        ("core_withdraw", {"10.0.0.2"}),
    ]
    running.client.mesh(mesh("shipper"), 7)
    assert published(running) == [
        ("core_publish", {"10.0.0.1"}),
        ("core_withdraw", {"10.0.0.1", "10.0.0.2", "10.0.0.3"}),
    ]


def test_a_workload_that_is_withdrawn_is_no_longer_published(running: Running) -> None:
    old, new = mesh("shipper"), mesh("shipper", phase=Phase.ABSENT)
    running.client.mesh(old, 5)
    published(running)
    assert running.client.mesh_change(old, new, 6, base=5)
    assert published(running) == [("core_withdraw", {"10.0.0.1"})]


def test_both_addresses_of_a_workload_are_published(running: Running) -> None:
    both = Workload(SHIPPER, "shipper", "n", (ADDRESS, ADDRESS_6), None, True, Mode.STRICT, Phase.ENROLLED)
    running.client.mesh(Mesh.build("example.org", [both]), 5)
    assert published(running) == [("core_publish", {"10.0.0.1", "fd00::1"})]


def test_a_mesh_that_is_refused_publishes_nothing(running: Running) -> None:
    running.client.mesh(mesh("shipper"), 5)
    published(running)
    with pytest.raises(CoreError, match="not in force"):
        running.client.mesh_change(mesh("shipper"), mesh(), 7, base=4)
    assert published(running) == []


def test_difference_to_another_epoch_is_refused_and_changes_nothing(running: Running) -> None:
    running.client.mesh(mesh("shipper"), 5)
    with pytest.raises(CoreError, match="not in force"):
        running.client.mesh_change(mesh("shipper"), mesh(), 7, base=4)
    assert running.client.hello().epoch == 5


def test_epoch_never_goes_back(running: Running) -> None:
    running.client.mesh(mesh("shipper"), 5)
    with pytest.raises(CoreError, match="not after"):
        running.client.mesh(mesh(), 5)


def large_mesh(count: int, mode: Mode = Mode.PERMISSIVE) -> Mesh:
    workloads = [
        Workload(WorkloadName("default", f"w{n}"), "default", "node1", (IPv4Address(0x0A000001 + n),), None, True, mode)
        for n in range(count)
    ]
    services = [
        Service(WorkloadName("default", f"s{n}"), (IPv4Address(0x0B000001 + n),), (ServicePort(80, 8080),), ())
        for n in range(count // 2)
    ]
    return Mesh.build("example.org", workloads, services)


@pytest.mark.parametrize("count", [contract.MESH_PART - 1, contract.MESH_PART, 2 * contract.MESH_PART + 1])
def test_large_mesh_goes_over_in_parts_and_comes_back(running: Running, count: int) -> None:
    old = large_mesh(count)
    running.client.mesh(old, 5)
    assert running.client.mesh_read() == old
    new = large_mesh(count + 7, Mode.STRICT)
    assert running.client.mesh_change(old, new, 6, base=5)
    assert running.client.mesh_read() == new
    assert running.client.mesh_change(new, mesh(), 7, base=6)
    assert running.client.mesh_read() == mesh()


def as_message(model: Mesh) -> Any:
    return json.loads(bytes(encode_difference(model.as_difference())))


def test_parts_of_a_mesh_count_for_nothing_before_it_is_complete(running: Running) -> None:
    running.client.mesh(mesh("shipper"), 5)
    part = as_message(large_mesh(3))
    assert running.answer({"op": "mesh_part", "number": 0, "part": part})["ok"]
    assert running.client.mesh_read() == mesh("shipper")
    assert calls(running.lib, "core_epoch") == [("core_epoch", 5, "all")]


def test_mesh_with_a_part_missing_is_refused_as_a_whole(running: Running) -> None:
    running.client.mesh(mesh("shipper"), 5)
    part, last = as_message(large_mesh(3)), as_message(mesh("pipeline"))
    assert not running.answer({"op": "mesh_part", "number": 1, "part": part})["ok"]
    assert running.answer({"op": "mesh_part", "number": 0, "part": part})["ok"]
    answer = running.answer({"op": "mesh", "epoch": 6, "parts": 2, "full": last})
    assert not answer["ok"]
    assert "3 parts" in answer["error"]
    # Nor is what came of it taken for a part of the next.
    assert running.answer({"op": "mesh", "epoch": 7, "parts": 0, "full": last})["ok"]
    assert running.client.mesh_read() == mesh("pipeline")


def test_mesh_read_of_a_fresh_core_is_none(running: Running) -> None:
    assert running.client.mesh_read() is None


def test_connections_are_rows_with_the_workloads_name(running: Running) -> None:
    running.add()
    source = {"ip": [0] * 10 + [255, 255, 10, 0, 0, 1], "port": 4000}
    running.lib.rows = [
        {"id": n, "workload": 1, "direction": 0, "state": 2, "mtls": 1, "source": source} for n in range(700)
    ]
    rows = running.connections()
    assert len(rows) == 700
    assert (rows[0].workload, rows[0].direction, rows[0].state) == ("default/shipper", "outbound", "open")
    assert (rows[0].source, rows[0].destination, rows[0].mtls) == ("10.0.0.1:4000", "", True)


def test_many_connections_come_in_parts_of_one_moment(running: Running) -> None:
    running.add()
    count = 2 * contract.CONNECTIONS_PART + 1
    running.lib.rows = [{"id": n, "workload": 1} for n in range(count)]
    assert [row.id for row in running.connections()] == list(range(count))
    session = control_server.Session()

    def part(first: int) -> Any:
        body = contract.encode(contract.Connections(first=first))
        return running.server.handle(session, body, [])[0]

    second = part(0).next
    running.lib.rows = [{"id": count, "workload": 1}]
    third = part(second).next
    assert [row.id for row in part(third).connections] == [count - 1]
    # Nothing of them is kept once all have been read. Whoever asks again is told what there is by now.
    assert session.connections is None
    assert [row.id for row in part(second).connections] == [count]


def test_parts_that_nobody_reads_are_not_kept_for_long(running: Running) -> None:
    session = control_server.Session()
    running.lib.rows = [{"id": n} for n in range(2)]
    running.server.handle(session, contract.encode(contract.Connections(limit=1)), [])
    session.forget(session.until - 0.1)
    assert session.connections is not None
    session.forget(session.until)
    assert session.connections is None


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({}, [1, 2, 3, 2 << 48]),
        ({"first": 2}, [2, 3, 2 << 48]),
        ({"live": True}, [1, 3, 2 << 48]),
        ({"workload": "default/shipper"}, [1, 2]),
        ({"direction": "inbound"}, [1, 2 << 48]),
        ({"direction": "inbound", "first": 2, "live": True}, [2 << 48]),
        ({"workload": "default/unknown"}, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_connections_are_chosen_and_come_in_the_order_of_their_ids(
    running: Running, wanted: dict[str, Any], ids: list[int], limit: int
) -> None:
    running.add()
    rows = [(3, 7, 0, 2), (1, 1, 1, 2), (2 << 48, 7, 1, 2), (2, 1, 0, 3)]
    names = ("id", "workload", "direction", "state")
    running.lib.rows = [dict(zip(names, row, strict=True)) for row in rows]
    assert [row.id for row in running.connections(**wanted, limit=limit)] == ids


def test_refused_peers_are_rows_with_the_workloads_name(running: Running) -> None:
    running.add()
    source = {"ip": [0] * 10 + [255, 255, 10, 0, 0, 9], "port": 0}
    own = {"ip": [0xFD] + [0] * 14 + [1], "port": 8080}
    row = {"workload": 1, "kind": 1, "direction": 1, "status": 401, "count": 3, "first_ms": 2000, "last_ms": 1000}
    texts = {"peer": b"spiffe://example.org/ns/a/sa/b", "reason": b"identity-mismatch"}
    running.lib.refused = [row | texts | {"source": source, "destination": own}]
    assert running.client.refusals() == [
        Refusal(
            workload="default/shipper",
            kind="stream",
            direction="inbound",
            source="10.0.0.9",
            destination="[fd00::1]:8080",
            reason="identity-mismatch",
            count=3,
            first_ms=2000,
            last_ms=1000,
            status=401,
            peer="spiffe://example.org/ns/a/sa/b",
        )
    ]


def test_stats_name_the_workload(running: Running) -> None:
    running.add()
    core, (row,) = running.client.stats()
    assert core.epoch == 3
    assert (row.workload, row.key) == ("default/shipper", 1)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"op": "none"}',
        b'{"op": "workload_add"}',
        b'{"op": "workload_add", "key": -1, "name": "a/b", "identity": "c", "addresses": []}',
        b'{"op": "mesh", "epoch": "x"}',
        b'{"op": "mesh", "epoch": 1}',
        b'{"op": "mesh", "epoch": 1, "full": []}',
        b'{"op": "mesh_read", "first": -1}',
        b'{"op": ["hello"]}',
        b"[1]",
        b"",
        b"no json",
        b"\xff\xfe",
        b'{"op": "no\\nsuch\\noperation"}',
    ],
)
def test_malformed_request_is_answered_with_one_line(running: Running, body: bytes) -> None:
    answer, fds = running.server.handle(control_server.Session(), body, [])
    assert isinstance(answer, contract.Refused)
    assert (answer.ok, fds, "\n" in answer.error) == (False, [], False)
    assert answer.error


def test_descriptors_of_a_refused_request_are_closed(running: Running) -> None:
    reading, writing = os.pipe()
    running.answer({"op": "none"}, [writing])
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_core_survives_the_agents_going(running: Running, tmp_path: Path) -> None:
    running.client.mesh(mesh("shipper"), 5)
    running.client.close()
    with BlockingClient.of(tmp_path, 1) as again:
        assert again.hello().epoch == 5


def test_stop_ends_the_server(tmp_path: Path) -> None:
    server = Running(tmp_path)
    server.client.stop()
    server.thread.join(timeout=10)
    assert not server.thread.is_alive()
    with pytest.raises(CoreGone):
        server.client.hello()
    server.end()


def test_no_core_is_core_gone(tmp_path: Path) -> None:
    with pytest.raises(CoreGone, match="no core runs"):
        CoreClient.newest(tmp_path)


def test_spawned_core_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="expected 1 to 64"):
        spawn(tmp_path, CoreOptions(workers=0, trust_domain="example.org"))


@pytest.mark.parametrize(
    ("process", "without"),
    [
        ("splice.process", "asyncio pyroute2 yaml cryptography psutil cffi subprocess click typing_extensions"),
        ("daemon.main", "bcc click typing_extensions nodeseal_lab aiohttp"),
    ],
)
def test_processes_stay_small(process: str, without: str) -> None:
    code = f"import sys, nodeseal.{process}\nprint([m for m in {without.split()} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert out.stdout.strip() == "[]"
