"""What is sent and how it ends: order, half closes, resets, urgent data, long transfers."""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import threading

from differential.case import Notice, case
from differential.notices import NO_URGENT_DATA
from differential.observation import Observation, outcome, received
from differential.setting import EVERYWHERE, MESH, PODS_ONLY
from differential.world import World
from support.connection import receive_exactly, reset
from support.patience import wait_for

LARGE = 8 << 20
TCP_REPAIR = 19  # linux/tcp.h
BOTH = (4, 6)


def to_end(connection: socket.socket) -> tuple[int, str, str]:
    """What comes until it ends: how many bytes, their digest, and how it ended."""
    digest, count = hashlib.sha256(), 0
    while True:
        data = b""

        def receive() -> None:
            nonlocal data
            data = connection.recv(1 << 20)

        result = outcome(receive)
        if result != "ok" or not data:
            return count, digest.hexdigest()[:16], "end" if result == "ok" else result
        digest.update(data)
        count += len(data)


def noise(seed: bytes, count: int) -> bytes:
    """Bytes that tell lost, doubled or exchanged parts."""
    return hashlib.shake_128(seed).digest(count)


@case(*EVERYWHERE, versions=BOTH)
def test_large_both_ways(world: World) -> Observation:
    """8 MiB go each way at the same time, and are compared."""
    client, accepted = world.connected()
    got: dict[str, tuple[int, str, str]] = {}

    def send(connection: socket.socket, seed: bytes) -> None:
        connection.sendall(noise(seed, LARGE))
        connection.shutdown(socket.SHUT_WR)

    def receive(name: str, connection: socket.socket) -> None:
        got[name] = to_end(connection)

    threads = [
        threading.Thread(target=send, args=(client, b"up")),
        threading.Thread(target=send, args=(accepted, b"down")),
        threading.Thread(target=receive, args=("client", client)),
        threading.Thread(target=receive, args=("server", accepted)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "client got": got["client"],
        "server got": got["server"],
        "whole": got["client"][1] == hashlib.sha256(noise(b"down", LARGE)).hexdigest()[:16],
    }


@case(*EVERYWHERE)
def test_client_half_close(world: World) -> Observation:
    """A client ends its direction; the server reads to the end, answers, and closes."""
    client, accepted = world.connected()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    asked = to_end(accepted)
    accepted.sendall(b"answer")
    accepted.close()
    return {"server got": asked, "client got": to_end(client)}


@case(*EVERYWHERE)
def test_server_half_close(world: World) -> Observation:
    """A server ends its direction first; the client reads the end, and still sends."""
    client, accepted = world.connected()
    accepted.sendall(b"banner")
    accepted.shutdown(socket.SHUT_WR)
    banner = to_end(client)
    client.sendall(b"still here")
    client.close()
    return {"client got": banner, "server got": to_end(accepted)}


@case(*EVERYWHERE)
def test_server_speaks_first(world: World) -> Observation:
    """A server sends before the client does."""
    client, accepted = world.connected()
    accepted.sendall(b"220 ready")
    return {"client got": receive_exactly(client, 9)}


@case(*EVERYWHERE)
def test_closes_at_once(world: World) -> Observation:
    """A client closes right after it has connected; the server accepts later."""
    listener = world.listen()
    client = world.dial()
    client.close()
    accepted = world.closing(listener.accept()[0])
    accepted.settimeout(20)
    return {"server got": to_end(accepted)}


@case(*EVERYWHERE)
def test_sends_and_closes_at_once(world: World) -> Observation:
    """A client sends and closes at once; the server accepts later."""
    listener = world.listen()
    client = world.dial()
    client.sendall(b"last words")
    client.close()
    accepted = world.closing(listener.accept()[0])
    accepted.settimeout(20)
    return {"server got": to_end(accepted)}


@case(*EVERYWHERE)
def test_server_closes_before_accept(world: World) -> Observation:
    """A server closes its listening socket while a connection waits to be accepted."""
    listener = world.listen()
    client = world.dial()
    select.select([listener], [], [], 20)  # it is in the queue
    listener.close()
    return {"client reads": received(lambda: client.recv(1))}


@case(*EVERYWHERE)
def test_client_resets(world: World) -> Observation:
    """A client ends with a reset (SO_LINGER of zero) while the server reads."""
    client, accepted = world.connected()
    client.sendall(b"data")
    got = receive_exactly(accepted, 4)
    reset(client)
    return {"server got": got, "server reads": received(lambda: accepted.recv(1))}


@case(*EVERYWHERE)
def test_server_resets(world: World) -> Observation:
    """A server ends with a reset (SO_LINGER of zero) while the client reads."""
    client, accepted = world.connected()
    accepted.sendall(b"data")
    got = receive_exactly(client, 4)
    reset(accepted)
    return {"client got": got, "client reads": received(lambda: client.recv(1))}


@case(*EVERYWHERE)
def test_unread_data_resets(world: World) -> Observation:
    """A server closes with data that it has not read; the client, which has half closed, is reset."""
    client, accepted = world.connected()
    client.sendall(b"unread")
    receive_exactly_peeking(accepted, 6)
    accepted.close()
    return {"client reads": received(lambda: client.recv(1))}


@case(*PODS_ONLY)
def test_half_open(world: World) -> Observation:
    """A server's kernel forgets a connection, as after a crash; the client does not know, and sends."""
    client, accepted = world.connected()
    client.sendall(b"x")
    accepted.recv(1)
    # With TCP_REPAIR close() sends nothing (tcp_close of net/ipv4/tcp.c).
    accepted.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    accepted.close()
    client.sendall(b"still there?")
    return {"client reads": received(lambda: client.recv(1))}


@case(*PODS_ONLY)
def test_write_after_close(world: World) -> Observation:
    """A client writes on and on to a server that has closed."""
    client, accepted = world.connected()
    accepted.close()
    end = received(lambda: client.recv(1))

    def write() -> str | None:
        result = outcome(lambda: client.send(b"x"))
        return result if result != "ok" else None

    return {"client reads": end, "client writes": wait_for(write, "writing fails", 20)}


@case(*PODS_ONLY)
def test_shutdown_both(world: World) -> Observation:
    """A client shuts down both directions, reads and writes."""
    client, accepted = world.connected()
    client.shutdown(socket.SHUT_RDWR)
    return {
        "server got": to_end(accepted),
        "client reads": received(lambda: client.recv(1)),
        "client writes": outcome(lambda: client.send(b"x")),
    }


@case(*PODS_ONLY)
def test_shutdown_read(world: World) -> Observation:
    """A client shuts down its reading only, then the server sends."""
    client, accepted = world.connected()
    client.shutdown(socket.SHUT_RD)
    at_first = received(lambda: client.recv(1))
    accepted.sendall(b"data")
    client.sendall(b"more")
    return {"client reads": at_first, "server got": receive_exactly(accepted, 4)}


@case(*PODS_ONLY)
def test_peek(world: World) -> Observation:
    """A server looks at data before it reads it (MSG_PEEK), and asks how much there is."""
    client, accepted = world.connected()
    client.sendall(b"abcdef")
    peeked = receive_exactly_peeking(accepted, 6)
    return {"peeked": peeked, "read": receive_exactly(accepted, 3), "then": accepted.recv(3, socket.MSG_PEEK)}


@case(*PODS_ONLY)
def test_order_of_small_writes(world: World) -> Observation:
    """A client sends 2,000 small pieces; the server reads them in order."""
    client, accepted = world.connected()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pieces = [b"%07d" % number for number in range(2000)]
    for piece in pieces:
        client.send(piece)
    return {"in order": receive_exactly(accepted, 7 * len(pieces)) == b"".join(pieces)}


@case(
    *PODS_ONLY,
    notices=(
        Notice("out of line", "there is no urgent data (EINVAL)", NO_URGENT_DATA, where=(MESH,)),
        Notice("in line", "the byte comes in its place among the others", NO_URGENT_DATA, where=(MESH,)),
    ),
)
def test_urgent_data(world: World) -> Observation:
    """A client sends a byte of urgent data after others; the server reads them in line and out of line."""
    client, accepted = world.connected()
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    client.shutdown(socket.SHUT_WR)
    wait_for(lambda: len(accepted.recv(64, socket.MSG_PEEK)) >= 6, "data comes")
    urgent = received(lambda: accepted.recv(1, socket.MSG_OOB))
    return {"out of line": urgent, "in line": to_end(accepted)[0]}


@case(*PODS_ONLY)
def test_slow_reader(world: World) -> Observation:
    """A server does not read for a second while the client sends 96 MiB, then reads all."""
    client, accepted = world.connected()
    block = noise(b"slow", 1 << 20)

    def send() -> None:
        for _ in range(96):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    threading.Event().wait(1.0)
    stuck = sender.is_alive()
    got = to_end(accepted)
    sender.join()
    return {"sender waits": stuck, "server got": got}


@case(*PODS_ONLY)
def test_linger_waits(world: World) -> Observation:
    """A client with SO_LINGER closes; close() waits until the server has it all."""
    client, accepted = world.connected()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
    client.sendall(b"all of it")
    closed = outcome(client.close)
    return {"close()": closed, "server got": to_end(accepted)}


def receive_exactly_peeking(connection: socket.socket, count: int) -> bytes:
    """That many bytes, which stay."""
    return wait_for(
        lambda: data if len(data := connection.recv(count, socket.MSG_PEEK)) == count else None, "data comes"
    )
