"""Connections that go past the core, read from a real kernel; and the end of those that were captured."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nodeseal.capture import constants
from nodeseal.linux.sock_diag import Direct, direct_connections, end_captured
from nodeseal.mesh.address import Address
from support.namespaces import Namespace, Namespaces
from support.patience import wait_for

pytestmark = pytest.mark.fast

MARKS = frozenset({constants.MARK_CAPTURED, constants.MARK_TO_APP, constants.MARK_CORE})
ADDRESSES = {4: ("10.99.1.1", "10.99.1.2"), 6: ("fd99::1", "fd99::2")}
SO_MARK = 36


class Pair:
    """A pod and a peer with a veth pair between them; sockets are closed at the end.

    Both have an address of each family; `pod_address` and `peer_address` are those that are used.
    """

    def __init__(self, net: Namespaces, stack: contextlib.ExitStack, version: int) -> None:
        self.pod, self.peer = net.create("pod"), net.create("peer")
        net.join(self.pod, "eth0", f"{ADDRESSES[4][0]}/24", self.peer, "eth0", f"{ADDRESSES[4][1]}/24")
        for namespace, address in zip((self.pod, self.peer), ADDRESSES[6], strict=True):
            namespace.add_address("eth0", f"{address}/64")
        self.pod_address, self.peer_address = map(ip_address, ADDRESSES[version])
        self.family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._stack = stack

    def listen(self, where: Namespace, address: str = "", family: int | None = None) -> socket.socket:
        def body() -> socket.socket:
            listener = socket.socket(family or self.family)
            listener.bind((address, 0))
            listener.listen()
            return listener

        return self._stack.enter_context(where.run(body))

    def connect(self, where: Namespace, address: Address | str, port: int, mark: int = 0) -> socket.socket:
        def body() -> socket.socket:
            client = socket.socket(self.family)
            if mark:
                client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            client.settimeout(10)
            client.connect((str(address), port))
            return client

        return self._stack.enter_context(where.run(body))

    def accept(self, listener: socket.socket) -> socket.socket:
        listener.settimeout(10)
        accepted, _address = listener.accept()
        return self._stack.enter_context(accepted)

    def direct(self) -> list[Direct]:
        return self.pod.run(lambda: direct_connections((self.pod_address,), MARKS))


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Namespaces() as net, contextlib.ExitStack() as stack:
        yield Pair(net, stack, request.param)


def test_outbound_connection_has_its_ends_and_its_bytes(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    port = listener.getsockname()[1]
    client = pair.connect(pair.pod, pair.peer_address, port)
    server = pair.accept(listener)
    client.sendall(b"x" * 1000)
    server.recv(1000, socket.MSG_WAITALL)
    server.sendall(b"y" * 10)
    client.recv(10, socket.MSG_WAITALL)
    expected = Direct((pair.pod_address, client.getsockname()[1]), (pair.peer_address, port), False, 0, 1000, 10)
    assert pair.direct() == [expected]


def test_inbound_connection_is_seen_as_inbound(pair: Pair) -> None:
    listener = pair.listen(pair.pod)
    pair.connect(pair.peer, pair.pod_address, listener.getsockname()[1])
    pair.accept(listener)
    (seen,) = pair.direct()
    assert seen.inbound
    assert seen.local == (pair.pod_address, listener.getsockname()[1])


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_sockets_with_our_marks_are_left_out(pair: Pair, mark: int) -> None:
    listener = pair.listen(pair.peer)
    pair.connect(pair.pod, pair.peer_address, listener.getsockname()[1], mark)
    pair.accept(listener)
    assert pair.direct() == []


def test_socket_with_a_foreign_mark_is_told_apart(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    pair.connect(pair.pod, pair.peer_address, listener.getsockname()[1], 0x1234)
    pair.accept(listener)
    assert [one.mark for one in pair.direct()] == [0x1234]


@pytest.mark.parametrize("where", ["on loopback", "on its own address"])
def test_connections_within_the_pod_are_left_out(pair: Pair, where: str) -> None:
    loopback = "127.0.0.1" if pair.family == socket.AF_INET else "::1"
    listener = pair.listen(pair.pod)
    pair.connect(pair.pod, loopback if where == "on loopback" else pair.pod_address, listener.getsockname()[1])
    pair.accept(listener)
    assert pair.direct() == []


def test_closed_connection_is_not_seen(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    client = pair.connect(pair.pod, pair.peer_address, listener.getsockname()[1])
    pair.accept(listener).close()
    client.close()
    wait_for(lambda: pair.direct() == [], "no connection is listed")


def test_many_connections_are_all_seen(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    listener.listen(512)
    for _ in range(300):
        pair.connect(pair.pod, pair.peer_address, listener.getsockname()[1])
        pair.accept(listener)
    assert len(pair.direct()) == 300


def test_captured_sockets_are_ended_and_others_are_not(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    port = listener.getsockname()[1]
    captured = pair.connect(pair.pod, pair.peer_address, port, constants.MARK_CAPTURED)
    pair.accept(listener)
    other = pair.connect(pair.pod, pair.peer_address, port)
    server = pair.accept(listener)
    marks = frozenset({constants.MARK_CAPTURED, constants.MARK_TO_APP})
    assert pair.pod.run(lambda: end_captured(marks)) == 1
    with pytest.raises(ConnectionAbortedError):
        captured.recv(1)
    other.sendall(b"z")
    assert server.recv(1) == b"z"
    assert pair.pod.run(lambda: end_captured(marks)) == 0


def test_connections_of_a_family_in_which_the_workload_has_no_address_are_left_out(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    pair.connect(pair.pod, pair.peer_address, listener.getsockname()[1])
    other = ip_address(ADDRESSES[4 if pair.family == socket.AF_INET6 else 6][0])
    assert pair.pod.run(lambda: direct_connections((other,), MARKS)) == []
    assert len(pair.pod.run(lambda: direct_connections((other, pair.pod_address), MARKS))) == 1


@pytest.fixture
def ipv4_pair() -> Iterator[Pair]:
    with Namespaces() as net, contextlib.ExitStack() as stack:
        yield Pair(net, stack, 4)


def test_ipv4_through_a_dual_stack_listener_is_seen(ipv4_pair: Pair) -> None:
    listener = ipv4_pair.listen(ipv4_pair.pod, "::", socket.AF_INET6)
    ipv4_pair.connect(ipv4_pair.peer, ipv4_pair.pod_address, listener.getsockname()[1])
    ipv4_pair.accept(listener)
    (seen,) = ipv4_pair.direct()
    assert (seen.inbound, seen.remote[0]) == (True, ipv4_pair.peer_address)


def test_connections_on_the_link_are_left_out(ipv4_pair: Pair) -> None:
    for namespace, address in ((ipv4_pair.pod, "fe80::99"), (ipv4_pair.peer, "fe80::98")):
        namespace.add_address("eth0", f"{address}/64")

    def dial() -> socket.socket:
        client = socket.socket(socket.AF_INET6)
        client.settimeout(10)
        client.connect(("fe80::98", port, 0, socket.if_nametoindex("eth0")))
        return client

    listener = ipv4_pair.listen(ipv4_pair.peer, "::", socket.AF_INET6)
    port = listener.getsockname()[1]
    with ipv4_pair.pod.run(dial):
        own = (ip_address(ADDRESSES[6][0]), ipv4_pair.pod_address)
        assert ipv4_pair.pod.run(lambda: direct_connections(own, MARKS)) == []
