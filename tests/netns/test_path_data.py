"""What the applications send and how they end is what arrives, on every way that a connection can take."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from support.connection import echoes, endpoint, family_of, receive_exactly, reset, silent
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs
from support.tcp_table import ESTABLISHED, tcp_table

IP_VERSIONS = (4, 6)

MEBIBYTE = 1 << 20
BULK = 100 * MEBIBYTE
STALLED = 64 * MEBIBYTE
STALLED_LONG = 192 * MEBIBYTE
OTHERS = 20 * MEBIBYTE
# No part of it repeats at a distance that a buffer could be lost or doubled by.
PATTERN = os.urandom(3 * MEBIBYTE + 4099)


@dataclass(frozen=True)
class Way:
    """A client's and a server's pod. `mtls`: what `nodeseal connections` must say of connections between them."""

    client: str
    server: str
    mtls: bool | None


WAYS = [
    pytest.param(Way("shipper", "pipeline", True), id="mtls"),
    pytest.param(Way("shipper", "siem", True), id="mtls-one-node"),
    pytest.param(Way("shipper", "intruder", False), id="plaintext-outbound"),
    pytest.param(Way("guest", "pipeline", None), id="plaintext-inbound"),
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Every way that a core decides about: a tunnel to the other node and on the same, and plaintext that the near or
    the far core only lets go."""
    result: Way = request.param
    return result


class Pair:
    """A connection, by both of its ends."""

    def __init__(self, lab: RunningLab, programs: Programs, way: Way) -> None:
        self.listener = programs.serve(way.server, silent)
        self.client = programs.dial(way.client, self.listener.address)
        self.server = self.listener.connection()
        if way.mtls is not None:
            assert lab.outbound(self.client)["mtls"] is way.mtls


@pytest.fixture
def pair(lab: RunningLab, programs: Programs, way: Way) -> Pair:
    """An established connection."""
    return Pair(lab, programs, way)


# ---- the end of a connection


def send_and_half_close(connection: socket.socket) -> None:
    """More than the buffers of two sockets hold: natively the sender waits for its reader."""
    connection.sendall(PATTERN)
    connection.shutdown(socket.SHUT_WR)


def test_client_half_close_still_receives(pair: Pair, programs: Programs) -> None:
    pair.client.sendall(b"request")
    pair.client.shutdown(socket.SHUT_WR)
    assert receive_exactly(pair.server, 7) == b"request"
    assert pair.server.recv(1) == b""
    sending = programs.thread(lambda: send_and_half_close(pair.server))
    assert receive_exactly(pair.client, len(PATTERN)) == PATTERN
    assert pair.client.recv(1) == b""
    sending.result()


def test_server_half_close_still_receives(pair: Pair, programs: Programs) -> None:
    pair.server.sendall(b"greeting")
    pair.server.shutdown(socket.SHUT_WR)
    assert receive_exactly(pair.client, 8) == b"greeting"
    assert pair.client.recv(1) == b""
    sending = programs.thread(lambda: send_and_half_close(pair.client))
    assert receive_exactly(pair.server, len(PATTERN)) == PATTERN
    assert pair.server.recv(1) == b""
    sending.result()


def test_client_reset_is_seen_by_the_server(pair: Pair) -> None:
    pair.client.sendall(b"x")
    assert pair.server.recv(1) == b"x"
    reset(pair.client)
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)


def test_server_reset_is_seen_by_the_client(pair: Pair) -> None:
    pair.server.sendall(b"x")
    assert pair.client.recv(1) == b"x"
    reset(pair.server)
    with pytest.raises(ConnectionResetError):
        pair.client.recv(1)


def test_reset_after_half_close_is_seen(pair: Pair) -> None:
    pair.client.shutdown(socket.SHUT_WR)
    assert pair.server.recv(1) == b""
    reset(pair.server)
    with pytest.raises(ConnectionResetError):
        pair.client.recv(1)


def test_all_that_was_sent_before_close_arrives(pair: Pair) -> None:
    pair.server.sendall(PATTERN[:100_000])
    pair.server.close()
    assert receive_exactly(pair.client, 100_000) == PATTERN[:100_000]
    assert pair.client.recv(1) == b""


def test_closed_port_refuses_or_resets(lab: RunningLab, programs: Programs, way: Way) -> None:
    def reserve() -> socket.socket:
        bound = socket.socket(family_of(programs.at(way.server)))
        bound.bind((programs.at(way.server), 0))
        return bound

    # Bound and not listening: nobody else can have this port meanwhile.
    reserved = lab.run(way.server, reserve)
    programs.at_end(reserved.close)
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):  # noqa: PT012
        client = programs.dial(way.client, reserved.getsockname()[:2])
        client.recv(1)


def test_ended_connection_leaves_the_list_of_open_ones(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert lab.outbound(client)["state"] == "open"
    source = endpoint(client.getsockname())
    client.close()

    def closed() -> bool:
        rows = [row for row in lab.connections("node1") if row["source"] == source]
        return all(row["state"] == "closed" and row["closed_seconds"] is not None for row in rows)

    wait_for(closed, "the connection is shown as closed")


# ---- bytes


@pytest.mark.parametrize("directions", [("up",), ("down",), ("up", "down")], ids="-and-".join)
def test_100_megabytes_arrive_unchanged(pair: Pair, programs: Programs, directions: tuple[str, ...]) -> None:
    ends = {"up": (pair.client, pair.server), "down": (pair.server, pair.client)}
    transfers = []
    for offset, direction in enumerate(directions):
        sender, receiver = ends[direction]
        transfers.append(
            (
                programs.thread(lambda sender=sender, offset=offset: send_pattern(sender, BULK, offset)),
                programs.thread(lambda receiver=receiver: digest_of(receiver, BULK)),
            )
        )
    for sending, receiving in transfers:
        assert receiving.result() == sending.result()


def test_server_speaks_first(lab: RunningLab, programs: Programs, way: Way) -> None:
    server = programs.serve(way.server, lambda connection: connection.sendall(b"220 ready\r\n"))
    client = programs.dial(way.client, server.address)
    assert receive_exactly(client, 11) == b"220 ready\r\n"


def test_200_connections_at_once(lab: RunningLab, programs: Programs, way: Way) -> None:
    server = programs.serve(way.server)
    clients = [programs.dial(way.client, server.address) for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(b"%08d" % number * 1000)
    for number, client in enumerate(clients):
        assert receive_exactly(client, 8000) == b"%08d" % number * 1000
    # Still all of them at once: none was closed for another.
    assert all(echoes(client) for client in clients)
    if way.mtls is not None:
        sources = {endpoint(client.getsockname()) for client in clients}
        rows = [
            row
            for row in lab.connections("node1")
            if row["source"] in sources and row["state"] == "open" and row["direction"] == "outbound"
        ]
        assert len(rows) == 200
        assert {row["mtls"] for row in rows} == {way.mtls}


def test_200_connections_opened_in_parallel(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    numbers = itertools.count()

    def worker() -> None:
        while next(numbers) < 200:
            assert echoes(programs.dial("shipper", server.address))

    for thread in [programs.thread(worker) for _ in range(8)]:
        thread.result()


# ---- a reader that stops


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Cores with one worker thread each: every connection of a pair of workloads is in one and the same tunnel."""
    root, pods = tmp_path_factory.mktemp("one"), ("guest:node1:plain",)
    with running_lab(root, more_pods=pods, settings={"workers": 1}, ipv6=True) as lab:
        assert [lab.core_stats(node).workers for node in ("node1", "node2")] == [1, 1]
        yield lab


@pytest.mark.parametrize("version", IP_VERSIONS)
@pytest.mark.parametrize("way", WAYS)
def test_reader_that_stops_stalls_only_itself(one_worker: RunningLab, way: Way, version: int) -> None:
    lab = one_worker
    with Programs(lab, version) as programs:
        stalled = Pair(lab, programs, way)
        other = Pair(lab, programs, way)
        if way.mtls:
            assert _tunnels(programs, way) == 1
        sent = Counter()
        sending = programs.thread(lambda: send_pattern(stalled.client, STALLED_LONG, 0, sent))

        def blocked() -> bool:
            before = sent.value
            for _ in range(100):
                other.client.sendall(b"?")
                other.server.recv(1)
            return before == sent.value

        wait_for(blocked, "the sender stands still while its reader does not read")
        up = programs.thread(lambda: send_pattern(other.client, OTHERS, 1))
        down = programs.thread(lambda: send_pattern(other.server, OTHERS, 2))
        up_read = programs.thread(lambda: digest_of(other.server, OTHERS))
        assert digest_of(other.client, OTHERS) == down.result()
        assert up_read.result() == up.result()
        # What it could send is what buffers on the way hold: those of the two sockets that receive may have grown to
        # tcp_rmem's last figure, 32 MiB here.
        assert sending.running
        assert sent.value < STALLED_LONG // 2

        # The reader comes back and misses nothing.
        assert digest_of(stalled.server, STALLED_LONG) == sending.result()


@pytest.mark.parametrize("version", IP_VERSIONS)
def test_reader_that_stops_lets_new_connections_in(one_worker: RunningLab, version: int) -> None:
    lab = one_worker
    with Programs(lab, version) as programs:
        # More than one of them: together they hold more than the tunnel's socket buffers.
        stalled = [Pair(lab, programs, Way("shipper", "pipeline", True)) for _ in range(4)]
        counters = [Counter() for _ in stalled]
        sending = [
            programs.thread(lambda pair=pair, sent=sent: send_pattern(pair.client, STALLED, 0, sent))
            for pair, sent in zip(stalled, counters, strict=True)
        ]
        server = programs.serve("pipeline")

        def blocked() -> bool:
            before = [sent.value for sent in counters]
            for _ in range(20):
                assert echoes(programs.dial("shipper", server.address))
            return before == [sent.value for sent in counters]

        wait_for(blocked, "all senders stand still")
        assert all(sender.running for sender in sending)
        readers = [programs.thread(lambda pair=pair: digest_of(pair.server, STALLED)) for pair in stalled]
        for reader, sender in zip(readers, sending, strict=True):
            assert reader.result() == sender.result()


class Counter:
    """A number that one thread adds to and others read."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Adds."""
        with self._lock:
            self.value += count


def send_pattern(connection: socket.socket, count: int, offset: int, sent: Counter | None = None) -> str:
    """Sends `count` bytes of the pattern, beginning at `offset`; their digest."""
    digest = hashlib.blake2b()
    view = memoryview(PATTERN)
    left = count
    position = offset
    while left:
        part = view[position : position + min(left, 1 << 18)]
        done = connection.send(part)
        digest.update(part[:done])
        if sent is not None:
            sent.add(done)
        left -= done
        position = (position + done) % len(PATTERN)
    return digest.hexdigest()


def digest_of(connection: socket.socket, count: int) -> str:
    """Receives `count` bytes; their digest. Raises EOFError when there are less."""
    digest = hashlib.blake2b()
    buffer = bytearray(1 << 18)
    left = count
    while left:
        got = connection.recv_into(buffer, min(left, len(buffer)))
        if not got:
            raise EOFError(f"the connection ended {left} bytes before its end")
        digest.update(memoryview(buffer)[:got])
        left -= got
    return digest.hexdigest()


def _tunnels(programs: Programs, way: Way) -> int:
    """How many TCP connections there are from the client's pod to the server's port 15008."""
    far = programs.at(way.server), HBONE_PORT
    sockets = programs.lab.run(way.client, tcp_table)
    return sum(one.remote == far and one.state == ESTABLISHED for one in sockets)
