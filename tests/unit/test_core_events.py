"""Events from a fake C core to those who have subscribed, over a real control socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeseal.contracts import core as contract
from nodeseal.contracts import events
from nodeseal.contracts.events import Closed, Failed, LimitReached, Opened, PeerRefused, Told
from nodeseal.linux import control_socket
from nodeseal.local import generations
from nodeseal.splice import control_loop, control_server, event_stream, native
from support.core_fakes import make_native
from support.patience import wait_for

PATIENCE = 20.0


class Core:
    """A control server in a thread, whose workload has the key 7."""

    def __init__(self, run_dir: Path) -> None:
        module, self.lib = make_native()
        core = native.Core(module, workers=1, trust_domain="example.org")
        self.server = control_server.ControlServer(core, trust_domain="example.org")
        self._path = str(generations.socket_path(run_dir, 1))
        self._listener = control_socket.listen(self._path)
        self._wake, self._signalled = socket.socketpair()
        self._thread = threading.Thread(target=control_loop.serve, args=(self.server, self._listener, self._wake))
        self._thread.start()
        self._peers: list[socket.socket] = []
        add = contract.WorkloadAdd(
            key=7,
            name="default/shipper",
            identity="spiffe://example.org/ns/default/sa/shipper",
            addresses=("10.0.0.1",),
        )
        with Path("/proc/self/ns/net").open() as namespace:
            self.ask(self.connect(), add, namespace.fileno())

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.settimeout(PATIENCE)
        peer.connect(self._path)
        self._peers.append(peer)
        return peer

    def ask(self, peer: socket.socket, request: contract.Request[Any], *fds: int) -> Any:
        with control_socket.packed(contract.encode(request), fds) as message:
            control_socket.send(peer, message)
        body, _fds = control_socket.receive(peer)
        return contract.read_answer(body, contract.answer_type(type(request)))

    def subscribe(self) -> socket.socket:
        peer = self.connect()
        assert self.ask(peer, contract.Subscribe()) == contract.Answer()
        return peer

    def listening(self) -> list[bool]:
        return [bool(call[1]) for call in self.lib.calls if call[0] == "core_events_listen"]

    def end(self) -> None:
        self._signalled.send(b"x")
        self._thread.join()
        for one in (*self._peers, self._listener, self._wake, self._signalled):
            one.close()


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    made = Core(tmp_path)
    try:
        yield made
    finally:
        made.end()


def told(peer: socket.socket) -> Told:
    """The next message."""
    body, fds = control_socket.receive(peer)
    assert fds == []
    return events.read_told(body)


def opened(number: int) -> dict[str, Any]:
    return {"kind": native.EVENT_OPENED, "connection.id": number, "connection.workload": 7, "connection.state": 2}


def test_nobody_listens_until_somebody_subscribes(core: Core) -> None:
    assert core.listening() == []
    first, second = core.subscribe(), core.subscribe()
    assert core.listening() == [True]
    first.close()
    second.close()
    wait_for(lambda: core.listening() == [True, False], "the core is told that nobody listens", PATIENCE)


def test_each_kind_of_event_arrives_as_what_it_is(core: Core) -> None:
    peer = core.subscribe()
    address = native.pack_ip(IPv4Address("10.0.0.9"))
    rows: list[dict[str, Any]] = [
        {**opened(1), "ago_ms": 5, "connection.mtls": 1, "connection.peer": b"spiffe://example.org/x"},
        {"kind": native.EVENT_CLOSED, "connection.id": 1, "connection.workload": 7, "connection.bytes_sent": 100},
        {"kind": native.EVENT_FAILED, "connection.id": 2, "connection.workload": 99, "connection.reason": b"denied"},
        {
            "kind": native.EVENT_REFUSED,
            "refusal.workload": 7,
            "refusal.count": 1,
            "refusal.source.ip": list(address),
            "refusal.reason": b"peer-presented-no-certificate",
        },
        {"kind": native.EVENT_LIMIT, "limit.workload": 7, "limit.limit": 1, "limit.value": 50, "limit.refused": 3},
    ]
    for row in rows:
        core.lib.events.put(row)
    found: list[Any] = []
    while len(found) < len(rows):
        found += told(peer).events
    first, closed, failed, refused, limit = found
    assert isinstance(first, Opened)
    assert (first.ago_ms, first.connection.id, first.connection.workload) == (5, 1, "default/shipper")
    assert (first.connection.mtls, first.connection.peer) == (True, "spiffe://example.org/x")
    assert isinstance(closed, Closed)
    assert closed.connection.bytes_sent == 100
    assert isinstance(failed, Failed)
    assert (failed.connection.workload, failed.connection.reason) == (None, "denied")
    assert isinstance(refused, PeerRefused)
    assert (refused.refusal.workload, refused.refusal.source) == ("default/shipper", "10.0.0.9")
    assert (refused.refusal.kind, refused.refusal.reason) == ("handshake", "peer-presented-no-certificate")
    assert limit == LimitReached(workload="default/shipper", limit="new_connections", value=50, refused=3)


def test_connections_that_end_with_their_workload_have_its_name(core: Core) -> None:
    """Their events wait in the core when it is removed."""
    peer = core.subscribe()
    core.ask(core.connect(), contract.WorkloadRemove(key=7))
    core.lib.events.put({"kind": native.EVENT_CLOSED, "connection.id": 1, "connection.workload": 7})
    (closed,) = told(peer).events
    assert closed.connection.workload == "default/shipper"  # type: ignore[union-attr]
    core.lib.rows = [{"id": 1, "workload": 7, "state": native.STATES.index("closed")}]
    rows = core.ask(core.connect(), contract.Connections()).connections
    assert [row.workload for row in rows] == ["default/shipper"]


def test_every_listener_gets_every_event_in_order(core: Core) -> None:
    peers = [core.subscribe() for _ in range(3)]
    for number in range(200):
        core.lib.events.put(opened(number))
    for peer in peers:
        found: list[int] = []
        while len(found) < 200:
            message = told(peer)
            assert message.lost == 0
            assert len(message.events) <= event_stream.MESSAGE_ROWS
            found += [one.connection.id for one in message.events if isinstance(one, Opened)]
        assert found == list(range(200))


def test_what_the_core_lost_is_told_with_the_next_event(core: Core) -> None:
    peer = core.subscribe()
    core.lib.events_lost = 42
    core.lib.events.put(opened(1))
    assert told(peer).lost == 42
    core.lib.events.put(opened(2))
    assert told(peer).lost == 0


def test_a_listener_that_does_not_read_loses_events_and_holds_nobody_up(core: Core) -> None:
    slow, quick = core.subscribe(), core.subscribe()
    count, found = 6000, 0
    for number in range(count):
        core.lib.events.put(opened(number))
    while found < count:
        found += len(told(quick).events)
    # The core answers others meanwhile.
    assert core.ask(core.connect(), contract.Live()).connections == 0
    slow_found = slow_lost = 0
    slow.setblocking(False)
    while True:
        try:
            message = told(slow)
        except BlockingIOError:
            break
        slow_found, slow_lost = slow_found + len(message.events), slow_lost + message.lost
    assert 0 < slow_found < count
    slow.settimeout(PATIENCE)
    core.lib.events.put(opened(count))
    message = told(slow)
    assert slow_found + slow_lost + message.lost + len(message.events) == count + 1


def test_a_listener_that_asks_something_is_let_go(core: Core) -> None:
    peer = core.subscribe()
    with control_socket.packed(contract.encode(contract.Live())) as message:
        control_socket.send(peer, message)
    with pytest.raises(control_socket.ControlClosed):
        control_socket.receive(peer)
    wait_for(lambda: core.listening() == [True, False], "the core is told that nobody listens", PATIENCE)


def test_a_listener_that_has_gone_is_forgotten(core: Core) -> None:
    core.subscribe().close()
    stays = core.subscribe()
    core.lib.events.put(opened(1))
    assert len(told(stays).events) == 1


def test_events_of_newer_cores_are_passed_over() -> None:
    row = msgspec.json.encode(LimitReached(workload="a/b", limit="connections", refused=1))
    body = b'{"events":[{"event":"moved","to":"mars"},%s],"lost":2,"more":1}' % row
    assert events.read_told(body) == Told(
        events=(LimitReached(workload="a/b", limit="connections", refused=1),), lost=2
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"events":1}', b'{"events":[{"event":"opened"}]}', b'{"lost":-1}', b'{"new":' + b"[" * 100_000],
    ids=lambda body: body[:20],
)
def test_what_is_no_event_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        events.read_told(body)


def test_kinds_of_events_are_those_of_the_header() -> None:
    module, _lib = make_native()
    names = {0: "OPENED", 1: "CLOSED", 2: "FAILED", 3: "REFUSED", 4: "LIMIT"}
    enum = module.ffi.typeof("enum ns_event_kind").elements
    assert enum == {number: f"NS_EVENT_{name}" for number, name in names.items()} | {5: "NS_EVENT_KINDS"}
    for number, name in names.items():
        assert getattr(native, f"EVENT_{name}") == number
