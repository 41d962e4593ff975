"""The ways in which applications connect: blocking or not, with time limits, with data, over other families."""

from __future__ import annotations

import asyncio
import ctypes
import select
import socket
import struct
from collections.abc import Callable

from differential.case import case
from differential.observation import Observation, named, outcome, received, timed
from differential.setting import EVERYWHERE, PODS_ONLY
from differential.world import World
from support.connection import echoes, receive_exactly

TCP_FASTOPEN_CONNECT = 30  # linux/tcp.h; the socket module has no name for it
POLL_MS = 20_000
BOTH = (4, 6)


def events(client: socket.socket) -> str:
    """What poll() says first, in words."""
    poll = select.poll()
    poll.register(client, select.POLLIN | select.POLLOUT)
    found = poll.poll(POLL_MS)
    names = ("POLLIN", "POLLOUT", "POLLERR", "POLLHUP")
    return " ".join(name for name in names if found and found[0][1] & getattr(select, name)) or "nothing"


def error_of(client: socket.socket) -> str:
    """SO_ERROR, which it takes."""
    return named(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def filtered(world: World) -> None:
    """A firewall at the server drops what comes for the port."""
    world.filter(world.server.plan.netns, "input", f"tcp dport {world.port} drop")


@case(*EVERYWHERE, versions=BOTH)
def test_nonblocking_closed_port(world: World) -> Observation:
    """A non-blocking client dials a closed port, polls, and asks for SO_ERROR."""
    client = world.new_socket(None)
    client.setblocking(False)
    first = outcome(lambda: client.connect(world.target))
    events(client)
    return {"connect()": first, "SO_ERROR": error_of(client)}


@case(*EVERYWHERE, versions=BOTH)
def test_nonblocking_open_port(world: World) -> Observation:
    """A non-blocking client dials a server, polls, asks for SO_ERROR and calls connect() again."""
    world.serve()
    client = world.new_socket(None)
    client.setblocking(False)
    first = outcome(lambda: client.connect(world.target))
    seen = {"connect()": first, "poll()": events(client), "SO_ERROR": error_of(client)}
    again = {outcome(lambda: client.connect(world.target)) for _ in range(2)}
    return seen | {"connect() at last": "EISCONN" if "EISCONN" in again else again}


@case(*PODS_ONLY, versions=BOTH)
def test_asyncio(world: World) -> Observation:
    """A client of asyncio dials a server."""
    world.serve()

    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection(*world.target)
        writer.write(b"a line")
        answer = await reader.readexactly(6)
        writer.close()
        await writer.wait_closed()
        return answer

    return {"answer": world.client.run(lambda: asyncio.run(talk()))}


@case(*PODS_ONLY, versions=BOTH)
def test_asyncio_closed_port(world: World) -> Observation:
    """A client of asyncio dials a closed port."""

    async def dial() -> None:
        _, writer = await asyncio.open_connection(*world.target)
        writer.close()

    return {"open_connection()": world.client.run(lambda: outcome(lambda: asyncio.run(dial())))}


def limited(world: World, limit: Callable[[socket.socket], None]) -> Observation:
    """A blocking client with a limit of its own dials a port whose SYNs are dropped."""
    filtered(world)
    client = world.new_socket(None)
    limit(client)
    result, seconds = timed(lambda: client.connect(world.target))
    return {"connect()": result, "time": seconds}


@case(*PODS_ONLY)
def test_syn_count(world: World) -> Observation:
    """A client that limits its SYNs (TCP_SYNCNT) dials a port whose SYNs are dropped."""
    return limited(world, lambda client: client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 2))


@case(*PODS_ONLY)
def test_user_timeout(world: World) -> Observation:
    """A client with TCP_USER_TIMEOUT dials a port whose SYNs are dropped."""
    return limited(world, lambda client: client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500))


@case(*PODS_ONLY)
def test_send_timeout(world: World) -> Observation:
    """A client with SO_SNDTIMEO dials a port whose SYNs are dropped."""
    value = struct.pack("ll", 1, 0)
    return limited(world, lambda client: client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value))


@case(*PODS_ONLY)
def test_own_timeout(world: World) -> Observation:
    """A client that polls for a second dials a port whose SYNs are dropped."""
    return limited(world, lambda client: client.settimeout(1.0))


@case(*PODS_ONLY)
def test_abandoned(world: World) -> Observation:
    """A client gives up a connection that waits for its answer, and dials another port from the same port at once."""
    filtered(world)
    world.serve(port=world.more_ports[0])
    client, next_one = world.new_socket(None), world.new_socket()
    client.bind((world.source, world.more_ports[1]))
    client.setblocking(False)
    first = outcome(lambda: client.connect(world.target))
    client.close()
    bound = outcome(lambda: next_one.bind((world.source, world.more_ports[1])))
    second = outcome(lambda: next_one.connect((world.target[0], world.more_ports[0])))
    return {"connect()": first, "bind() again": bound, "connect() again": second, "echo": echoes(next_one)}


@case(*PODS_ONLY)
def test_mapped(world: World) -> Observation:
    """An IPv6 socket dials an IPv4 address (v4-mapped)."""
    world.serve()
    client = world.closing(world.client.make_socket(socket.AF_INET6))
    client.settimeout(20)
    mapped = f"::ffff:{world.target[0]}"
    result, seconds = timed(lambda: client.connect((mapped, world.port)))
    return {
        "connect()": result,
        "time": seconds,
        "own address": client.getsockname()[0],
        "peer": client.getpeername()[:2],
        "echo": echoes(client),
    }


@case(*PODS_ONLY)
def test_mapped_closed_port(world: World) -> Observation:
    """An IPv6 socket dials a closed port of an IPv4 address (v4-mapped)."""
    client = world.closing(world.client.make_socket(socket.AF_INET6))
    return {"connect()": outcome(lambda: client.connect((f"::ffff:{world.target[0]}", world.port)))}


def fast_open_server(world: World) -> socket.socket:
    """A server that takes data from SYNs."""
    world.server.sysctl("ipv4/tcp_fastopen", "3")
    return world.listen(prepare=lambda one: one.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16))


def fast_open_twice(world: World, send: Callable[[socket.socket], None]) -> Observation:
    """The second has the cookie that the first got."""
    listener = fast_open_server(world)
    seen = {}
    for number in ("first", "second"):
        client = world.new_socket(None)
        seen[f"{number} send"] = outcome(lambda client=client: send(client))  # type: ignore[misc]
        accepted = world.closing(listener.accept()[0])
        accepted.settimeout(20)
        seen[f"{number} at the server"] = receive_exactly(accepted, 5).decode()
        accepted.sendall(b"back")
        seen[f"{number} answer"] = receive_exactly(client, 4).decode()
    return seen


@case(*PODS_ONLY, versions=BOTH)
def test_fast_open(world: World) -> Observation:
    """A client sends with MSG_FASTOPEN."""
    return fast_open_twice(world, lambda client: _discard(client.sendto(b"hello", socket.MSG_FASTOPEN, world.target)))


@case(*PODS_ONLY, versions=BOTH)
def test_fast_open_connect(world: World) -> Observation:
    """A client has TCP_FASTOPEN_CONNECT: connect() waits for the first data."""

    def send(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        client.connect(world.target)
        client.sendall(b"hello")

    return fast_open_twice(world, send)


@case(*PODS_ONLY)
def test_fast_open_closed_port(world: World) -> Observation:
    """A client sends with MSG_FASTOPEN to a closed port."""
    client = world.new_socket(None)
    return {"sendto()": outcome(lambda: client.sendto(b"hello", socket.MSG_FASTOPEN, world.target))}


@case(*PODS_ONLY)
def test_select_before_data(world: World) -> Observation:
    """A client that is connected and has got nothing yet reads without waiting, then waits."""
    client, accepted = world.connected()
    client.setblocking(False)
    at_first = received(lambda: client.recv(10))
    accepted.sendall(b"data")
    return {"at first": at_first, "readable": select.select([client], [], [], 20)[0] == [client]}


@case(*EVERYWHERE)
def test_connect_twice(world: World) -> Observation:
    """A client calls connect() on a socket that is connected."""
    client, _ = world.connected()
    return {"connect() again": outcome(lambda: client.connect(world.target))}


@case(*PODS_ONLY)
def test_disconnect(world: World) -> Observation:
    """A client undoes its connection (connect() to AF_UNSPEC), and dials again with the same socket."""
    served = world.serve()
    client = world.dial()
    peer, first = client.getpeername()[:2], echoes(client)
    world.client.run(lambda: _connect_unspecified(client))
    gone = outcome(client.getpeername)
    again = outcome(lambda: client.connect(world.target))
    return {
        "peer": peer,
        "first echo": first,
        "after": gone,
        "again": again,
        "echo": echoes(client),
        "served": len(served.peers),
    }


def _connect_unspecified(client: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("H14x", socket.AF_UNSPEC)
    assert libc.connect(client.fileno(), address, len(address)) == 0


def _discard(_value: object) -> None:
    return None
