"""Native connections of captured workloads: what is let go is accounted for, by whom, why, and with its bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.bypass import Entries, extent_entries, node_entries, peer_entries
from nodeseal.capture.listeners import PARKED
from nodeseal.capture.natives import Native, Owner, Place, Total
from nodeseal.capture.node import NodeCapture
from nodeseal.linux import socket_options
from nodeseal.mesh.exclusions import Excluded, Exclusions, PortRange
from nodeseal.mesh.extent import Extent
from support.connection import echoes, receive_exactly
from support.parking import ARRIVED, Answers, Ring, Sender, again, refusal
from support.parking import Parked as ParkedSyn
from support.patience import wait_for
from support.pods import Pods
from support.tcp_table import ports_in_use

pytestmark = pytest.mark.ebpf_only("with iptables nothing is native")

OUTSIDE = extent_entries(Extent((ip_network("10.91.1.0/24"), ip_network("fd91:1::/64"))))
OWN_MARK = ((socket.SOL_SOCKET, socket_options.SO_MARK, 77),)
NO_LINGER = ((socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"),)
_SO_COOKIE = 57


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, version=request.param) as pods:
        yield pods


class Client:
    """The client is captured, but for what the entries of the map `bypass` say; the server echoes."""

    def __init__(self, pods: Pods, entries: Entries) -> None:
        self.pods = pods
        self.server = pods.echo(pods.server)
        self.capture = pods.capture()
        self.capture.bypass().replace(entries)
        captured = self.capture.enrol(pods.client_target)
        pods.relay(captured)
        self.owner = Owner(captured.namespace.cookie)

    def dial(self, port: int = 8080, **options: object) -> socket.socket:
        return self.pods.dial(self.pods.client, (self.pods.server_at, port), **options)  # type: ignore[arg-type]

    def total(self, reason: int) -> Total:
        return total(self.capture, Place(self.owner, False, reason, ip_address(self.pods.server_at)))


def total(capture: NodeCapture, place: Place) -> Total:
    return capture.native_totals().get(place, Total())


def cookie(connection: socket.socket) -> int:
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


def excluding(pods: Pods) -> Entries:
    return peer_entries([ip_address(pods.client_at)], Exclusions(outbound=Excluded((PortRange(8080, 8080),))))


@pytest.mark.parametrize("why", ["outside", "excluded", "mark"])
def test_what_is_let_go_at_connect_is_accounted_for(pods: Pods, why: str) -> None:
    entries = {"outside": OUTSIDE, "excluded": excluding(pods), "mark": {}}[why]
    reasons = {
        "outside": constants.NATIVE_OUTSIDE,
        "excluded": constants.NATIVE_EXCLUDED_PORT,
        "mark": constants.NATIVE_MARK,
    }
    client = Client(pods, entries)
    connection = client.dial(options=OWN_MARK if why == "mark" else ())
    ends = [(ip_address(name[0]), name[1]) for name in (connection.getsockname(), connection.getpeername())]
    number = cookie(connection)
    ((found, native),) = client.capture.natives().items()
    assert found == number
    assert native == Native(number, client.owner, False, reasons[why], *ends, native.opened)
    assert client.total(reasons[why]) == Total(opened=1)
    connection.sendall(b"x" * 100_000)
    receive_exactly(connection, 100_000)
    connection.close()
    wait_for(lambda: not client.capture.natives(), "it is closed")
    counted = client.total(reasons[why])
    assert (counted.opened, counted.closed, counted.acknowledged, counted.received // 10) == (1, 1, 100_000, 10_000)


def test_what_is_captured_is_not_native(pods: Pods) -> None:
    client = Client(pods, {})
    assert echoes(client.dial())
    assert client.capture.natives() == {}
    assert client.capture.native_totals() == {}


def test_what_never_comes_to_be_is_not_accounted_for(pods: Pods) -> None:
    client = Client(pods, OUTSIDE)
    with pytest.raises(ConnectionRefusedError):
        client.dial(9999)
    assert client.capture.natives() == {}
    assert client.capture.native_totals() == {}


@pytest.mark.parametrize("end", ["client first", "server first", "reset"])
def test_bytes_are_those_of_the_applications(pods: Pods, end: str) -> None:
    """Neither the SYN nor a FIN counts; one that arrives in FIN_WAIT2 may."""
    client = Client(pods, OUTSIDE)
    connection = client.dial()
    assert echoes(connection, b"12345")
    if end == "server first":
        client.server.hang_up()
        assert connection.recv(1) == b""
    elif end == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    wait_for(lambda: not client.capture.natives(), "it is closed")
    found = client.total(constants.NATIVE_OUTSIDE)
    assert (found.opened, found.closed, found.acknowledged) == (1, 1, 5)
    assert found.received in ((5, 6) if end == "client first" else (5,))


def test_the_last_that_were_closed_are_told(pods: Pods) -> None:
    client = Client(pods, OUTSIDE)
    connection = client.dial()
    assert echoes(connection, b"12345")
    number, (native,) = cookie(connection), client.capture.natives().values()
    assert client.capture.native_log(wanted=False).events == ()
    connection.close()
    wait_for(lambda: not client.capture.natives(), "it is closed")
    log = client.capture.native_log(wanted=False)
    (event,) = log.events
    assert (event.native, event.native.cookie, event.closed) == (native, number, True)
    assert event.acknowledged == 5
    assert event.when > native.opened
    assert client.capture.native_log(wanted=False) == log
    assert client.capture.native_log(log.next, wanted=False) == replace(log, events=())


def test_those_that_are_opened_are_told_to_who_listens(pods: Pods) -> None:
    client = Client(pods, OUTSIDE)
    client.capture.native_log(wanted=True)
    connection = client.dial()
    log = client.capture.native_log(wanted=False)
    (event,) = log.events
    assert (event.native.cookie, event.closed, event.when >= event.native.opened) == (cookie(connection), False, True)
    client.dial()
    assert client.capture.native_log(log.next, wanted=False).events == ()


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def test_of_too_many_the_oldest_are_not_told(pods: Pods) -> None:
    client = Client(pods, OUTSIDE)
    log = client.capture.native_log(wanted=False)
    with on_one_cpu():
        for _ in range(constants.NATIVE_LOG + 3):
            client.dial(options=NO_LINGER).close()
    wait_for(lambda: not client.capture.natives(), "all are closed")
    after = client.capture.native_log(log.next, wanted=False)
    assert (len(after.events), after.lost) == (constants.NATIVE_LOG, 3)
    assert [event.when for event in after.events] == sorted(event.when for event in after.events)


def test_connection_outlives_the_agent_and_is_accounted_for(pods: Pods) -> None:
    client = Client(pods, OUTSIDE)
    connection = client.dial()
    client.capture.close()
    connection.sendall(b"12345")
    receive_exactly(connection, 5)
    other = client.dial()
    later = pods.capture()
    assert later.natives().keys() == {cookie(connection), cookie(other)}
    connection.close()
    place = Place(client.owner, False, constants.NATIVE_OUTSIDE, ip_address(pods.server_at))
    wait_for(lambda: total(later, place).closed == 1, "it is closed")
    assert total(later, place).acknowledged == 5


# ---- what the core decides: a reader in its place sends the SYN out


class Parked(Client):
    """The same client, whose SYNs are parked; the reader sends them out natively, as `sent` says."""

    def __init__(self, pods: Pods) -> None:
        super().__init__(pods, {})
        captured = self.capture.captured["default/client"]
        self.capture.park(captured, on=True, native=True)
        self.ring = captured.listeners[PARKED]
        self.sender = Sender(pods.client)
        pods.at_end(self.sender.close)

    def begin(self, port: int = 8080) -> socket.socket:
        """A connection that is being made."""

        def connect() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if self.pods.version == 6 else socket.AF_INET)
            made.setblocking(False)
            assert made.connect_ex((self.pods.server_at, port)) == errno.EINPROGRESS
            return made

        made = self.pods.client.run(connect)
        self.pods.at_end(made.close)
        return made

    def parked(self) -> bytes:
        """The SYN that was parked last."""
        with Ring(self.ring) as ring:
            return ring.wait()[-1].packet


def test_what_the_core_sends_out_is_native(pods: Pods) -> None:
    client = Parked(pods)
    connection = client.begin()
    client.sender.send(again(client.parked()), constants.MARK_NATIVE)
    connection.settimeout(5)
    connection.connect((pods.server_at, 8080))
    assert connection.getpeername()[0] == pods.server_at
    assert echoes(connection, b"12345")
    assert connection.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == 0
    assert client.server.sources == [connection.getsockname()[:2]]
    ((_, native),) = client.capture.natives().items()
    assert (native.owner, native.inbound, native.reason) == (client.owner, False, constants.NATIVE_DECIDED)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    wait_for(lambda: not client.capture.natives(), "it is closed")
    assert client.total(constants.NATIVE_DECIDED) == Total(1, 1, 5, 5)


def test_refusal_of_the_far_side_is_the_kernels(pods: Pods) -> None:
    client = Parked(pods)
    connection = client.begin(9999)
    client.sender.send(again(client.parked()), constants.MARK_NATIVE)
    wait_for(lambda: connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED, "it is refused")
    assert client.capture.native_totals() == {}


def test_a_note_of_an_older_connection_takes_no_mark_off(pods: Pods) -> None:
    """The core sent a SYN out and nobody answered; from the same port comes another, which is released."""
    client = Parked(pods)
    connection = client.begin()
    syn = client.parked()
    at = 20 if pods.version == 4 else 40
    older = syn[: at + 4] + bytes(value ^ 0x55 for value in syn[at + 4 : at + 8]) + syn[at + 8 :]
    client.pods.router.ip("link", "set", "b0", "down")
    client.sender.send(again(older), constants.MARK_NATIVE)
    client.sender.send(again(syn), constants.MARK_RELEASED)
    connection.settimeout(5)
    connection.connect((pods.server_at, 8080))
    assert connection.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == constants.MARK_CAPTURED
    assert client.capture.natives() == {}


# ---- inbound


class Served:
    """The server is captured, and what arrives is parked; a reader stands in for the core."""

    def __init__(self, pods: Pods, entries: Entries | None = None, **changes: bool) -> None:
        self.pods = pods
        self.before = pods.server.state()
        self.server = pods.echo(pods.server)
        self.capture = pods.capture()
        self.capture.bypass().replace(entries or {})
        self.captured = self.capture.enrol(replace(pods.server_target, **changes))
        self.relay = pods.relay(self.captured)
        self.capture.park(self.captured, on=True, native=True)
        self.owner = Owner(self.captured.namespace.cookie)
        self.sender = Sender(pods.server)
        pods.at_end(self.sender.close)

    def answers(self, mark: int = constants.MARK_ADMITTED) -> Answers:
        """All that arrives is let in."""

        def answer(parked: ParkedSyn) -> None:
            self.sender.send(again(parked.packet), mark)

        answers = Answers(self.pods.server, self.captured.listeners[PARKED], arrived=answer)
        self.pods.at_end(answers.close)
        return answers

    def dial(self, **options: object) -> socket.socket:
        return self.pods.dial(self.pods.client, (self.pods.server_at, 8080), **options)  # type: ignore[arg-type]

    def reasons(self) -> list[tuple[bool, int]]:
        return [(native.inbound, native.reason) for native in self.capture.natives().values()]


def test_who_is_admitted_is_accepted_by_the_application_itself(pods: Pods) -> None:
    served = Served(pods)
    answers = served.answers()
    connection = served.dial()
    assert echoes(connection, b"12345")
    (syn,) = answers.of(ARRIVED)
    assert syn.source == connection.getsockname()[:2]
    assert syn.destination == (pods.server_at, 8080)
    assert served.server.sources == [syn.source]
    assert served.server.accepted[0].getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == 0
    assert served.relay.flows == []
    ((_, native),) = served.capture.natives().items()
    assert (native.owner, native.inbound, native.reason) == (served.owner, True, constants.NATIVE_DECIDED)
    assert (str(native.source[0]), native.source[1]) == syn.source
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    wait_for(lambda: not served.capture.natives(), "it is closed")
    place = Place(served.owner, True, constants.NATIVE_DECIDED, ip_address(pods.client_at))
    assert total(served.capture, place) == Total(1, 1, 5, 5)


def test_closed_port_refuses_by_itself(pods: Pods) -> None:
    served = Served(pods)
    served.answers()
    with pytest.raises(ConnectionRefusedError):
        pods.dial(pods.client, (pods.server_at, 9999))


def test_who_is_refused_is_refused(pods: Pods) -> None:
    served = Served(pods)

    def refuse(parked: ParkedSyn) -> None:
        served.sender.send(refusal(parked.packet), constants.MARK_CORE)

    with Answers(pods.server, served.captured.listeners[PARKED], arrived=refuse), pytest.raises(ConnectionRefusedError):
        served.dial()
    assert served.server.peers == []


def test_what_arrives_waits_while_nobody_reads(pods: Pods) -> None:
    served = Served(pods)
    served.relay.close()
    served.capture.close()
    with pytest.raises(TimeoutError):
        served.dial(timeout=0.3)
    assert served.server.peers == []


def test_client_uses_its_port_again_while_the_server_is_in_time_wait(pods: Pods) -> None:
    served = Served(pods)
    served.answers()
    for number in range(3):
        connection = served.dial(source_port=45679)
        assert echoes(connection)
        served.server.hang_up()
        assert connection.recv(1) == b""
        connection.close()
        wait_for(lambda: 45679 not in pods.client.run(ports_in_use), "the client's side is closed")
        assert len(served.server.peers) == number + 1
    assert served.relay.flows == []


def test_who_is_admitted_passes_with_syn_cookies(pods: Pods) -> None:
    pods.server.sysctl("net/ipv4/tcp_syncookies", 2)
    served = Served(pods)
    served.answers()
    for _ in range(3):
        assert echoes(served.dial())
    assert served.relay.flows == []
    assert served.reasons() == [(True, constants.NATIVE_DECIDED)] * 3


def test_ack_of_nobody_goes_to_the_core(pods: Pods) -> None:
    """A handshake with SYN cookies that began before SYNs were parked."""
    pods.server.sysctl("net/ipv4/tcp_syncookies", 2)
    served = Served(pods)
    served.capture.park(served.captured, on=False)
    assert echoes(served.dial())
    assert len(served.relay.flows) == 1
    assert served.capture.natives() == {}


def test_what_passes_by_is_not_parked(pods: Pods) -> None:
    inbound = Exclusions(inbound=Excluded((PortRange(8080, 8080),)))
    served = Served(pods, peer_entries([ip_address(pods.server_at)], inbound))
    assert echoes(served.dial())
    assert served.reasons() == [(True, constants.NATIVE_EXCLUDED_PORT)]


def test_the_node_is_not_parked(pods: Pods) -> None:
    gateway = "10.91.2.1" if pods.version == 4 else "fd91:2::1"
    served = Served(pods, node_entries([ip_address(gateway)], []))
    assert echoes(pods.dial(pods.router, (pods.server_at, 8080)))
    assert served.reasons() == [(True, constants.NATIVE_NODE)]


def test_who_is_open_on_failure_is_reached_when_nobody_holds_the_listener(pods: Pods) -> None:
    served = Served(pods, open_on_failure=True)
    served.relay.close()
    served.capture.close()
    connection = served.dial()
    assert echoes(connection)
    assert [native.reason for native in pods.capture().natives().values()] == [constants.NATIVE_OPEN]


def test_crowded_ring_leaves_room_for_what_the_workload_dials(pods: Pods) -> None:
    """What arrives goes to the core's listener then."""
    served = Served(pods)

    def begin() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if pods.version == 6 else socket.AF_INET)
        made.setblocking(False)
        made.connect_ex((pods.server_at, 8080))
        return made

    waiting = [pods.client.run(begin) for _ in range(600)]
    wait_for(lambda: served.relay.flows, "one is forwarded")
    for one in waiting:
        one.close()
    assert served.capture.errors()["park_full"] == 0


def test_core_is_told_how_many_native_connections_there_are(pods: Pods) -> None:
    served = Served(pods)
    answers = served.answers()
    connections = [served.dial() for _ in range(3)]
    connections.pop().close()
    wait_for(lambda: len(served.capture.natives()) == 2, "one is closed")
    served.dial()
    assert [one.value for one in answers.of(ARRIVED)] == [0x80000000 + number for number in (0, 1, 2, 2)]


def test_nothing_is_left(pods: Pods) -> None:
    served = Served(pods)
    served.answers()
    connection = served.dial()
    assert echoes(connection)
    served.capture.release(served.captured.target)
    assert pods.server.state() == served.before
    assert echoes(connection), "it goes on"
    assert served.capture.native_totals() == {}
