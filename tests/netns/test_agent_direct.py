"""Connections that go past the core, read from a real kernel; and the end of those that were captured."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from nodeseal.agent.direct import Direct, direct_connections, end_marked
from nodeseal.capture import constants
from support.namespaces import Namespace, Namespaces, needs_root, wait_for

pytestmark = needs_root

MARKS = frozenset({constants.MARK_CAPTURED, constants.MARK_TO_APP, constants.MARK_CORE})
POD, PEER = IPv4Address("10.99.1.1"), IPv4Address("10.99.1.2")
SO_MARK = 36


class Pair:
    """A pod and a peer with a veth pair between them; sockets are closed at the end."""

    def __init__(self, net: Namespaces, stack: contextlib.ExitStack) -> None:
        self.pod, self.peer = net.create("pod"), net.create("peer")
        net.join(self.pod, "eth0", f"{POD}/24", self.peer, "eth0", f"{PEER}/24")
        self._stack = stack

    def listen(self, where: Namespace, address: str = "", family: int = socket.AF_INET) -> socket.socket:
        def body() -> socket.socket:
            listener = socket.socket(family)
            listener.bind((address, 0))
            listener.listen()
            return listener

        return self._stack.enter_context(where.run(body))

    def connect(self, where: Namespace, address: IPv4Address | str, port: int, mark: int = 0) -> socket.socket:
        def body() -> socket.socket:
            client = socket.socket()
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
        return self.pod.run(lambda: direct_connections(POD, MARKS))


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Namespaces() as net, contextlib.ExitStack() as stack:
        yield Pair(net, stack)


def test_outbound_connection_has_its_ends_and_its_bytes(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    port = listener.getsockname()[1]
    client = pair.connect(pair.pod, PEER, port)
    server = pair.accept(listener)
    client.sendall(b"x" * 1000)
    server.recv(1000, socket.MSG_WAITALL)
    server.sendall(b"y" * 10)
    client.recv(10, socket.MSG_WAITALL)
    expected = Direct((POD, client.getsockname()[1]), (PEER, port), False, 0, 1000, 10)
    assert pair.direct() == [expected]


def test_inbound_connection_is_seen_as_inbound(pair: Pair) -> None:
    listener = pair.listen(pair.pod)
    pair.connect(pair.peer, POD, listener.getsockname()[1])
    pair.accept(listener)
    (seen,) = pair.direct()
    assert seen.inbound
    assert seen.local == (POD, listener.getsockname()[1])


def test_ipv4_through_a_dual_stack_listener_is_seen(pair: Pair) -> None:
    listener = pair.listen(pair.pod, "::", socket.AF_INET6)
    pair.connect(pair.peer, POD, listener.getsockname()[1])
    pair.accept(listener)
    (seen,) = pair.direct()
    assert (seen.inbound, seen.remote[0]) == (True, PEER)


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_sockets_with_our_marks_are_left_out(pair: Pair, mark: int) -> None:
    listener = pair.listen(pair.peer)
    pair.connect(pair.pod, PEER, listener.getsockname()[1], mark)
    pair.accept(listener)
    assert pair.direct() == []


def test_socket_with_a_foreign_mark_is_told_apart(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    pair.connect(pair.pod, PEER, listener.getsockname()[1], 0x1234)
    pair.accept(listener)
    assert [one.mark for one in pair.direct()] == [0x1234]


@pytest.mark.parametrize("address", ["127.0.0.1", str(POD)])
def test_connections_within_the_pod_are_left_out(pair: Pair, address: str) -> None:
    listener = pair.listen(pair.pod)
    pair.connect(pair.pod, address, listener.getsockname()[1])
    pair.accept(listener)
    assert pair.direct() == []


def test_closed_connection_is_not_seen(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    client = pair.connect(pair.pod, PEER, listener.getsockname()[1])
    pair.accept(listener).close()
    client.close()
    wait_for(lambda: pair.direct() == [], "no connection is listed")


def test_many_connections_are_all_seen(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    listener.listen(512)
    for _ in range(300):
        pair.connect(pair.pod, PEER, listener.getsockname()[1])
        pair.accept(listener)
    assert len(pair.direct()) == 300


def test_captured_sockets_are_ended_and_others_are_not(pair: Pair) -> None:
    listener = pair.listen(pair.peer)
    port = listener.getsockname()[1]
    captured = pair.connect(pair.pod, PEER, port, constants.MARK_CAPTURED)
    pair.accept(listener)
    other = pair.connect(pair.pod, PEER, port)
    server = pair.accept(listener)
    marks = frozenset({constants.MARK_CAPTURED, constants.MARK_TO_APP})
    assert pair.pod.run(lambda: end_marked(marks)) == 1
    with pytest.raises(ConnectionAbortedError):
        captured.recv(1)
    other.sendall(b"z")
    assert server.recv(1) == b"z"
    assert pair.pod.run(lambda: end_marked(marks)) == 0
