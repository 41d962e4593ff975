"""How long the other side's silence is borne: keepalive and TCP_USER_TIMEOUT, when the network between is gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from differential.case import Notice, case
from differential.notices import NO_TIMEOUT_ON_THE_WIRE
from differential.observation import Observation, Seconds, outcome, received
from differential.setting import FAR_MESH, FAR_OUTWARD
from differential.world import World
from support.connection import echoes
from support.patience import wait_for

LIMIT = 12.0
RESET = (Notice("read", "it fails with ECONNRESET", NO_TIMEOUT_ON_THE_WIRE, where=(FAR_MESH,)),)


def dial(world: World) -> socket.socket:
    """A connection, once the case before is over for whatever is between the two."""

    def attempt() -> socket.socket | None:
        client = world.new_socket(2.0)
        if outcome(lambda: client.connect(world.target)) == "ok":
            client.settimeout(LIMIT)
            return client
        client.close()
        return None

    return wait_for(attempt, "the server can be reached again")


def connected(world: World) -> tuple[socket.socket, socket.socket]:
    """Both ends of such a connection."""
    listener = world.listen()
    client = dial(world)
    accepted = world.closing(listener.accept()[0])
    while accepted.getpeername()[0] and not same(client, accepted):
        accepted = world.closing(listener.accept()[0])
    return client, accepted


def same(client: socket.socket, accepted: socket.socket) -> bool:
    """Whether these are the ends of one connection, and not what an earlier attempt has left."""
    client.sendall(b"?")
    accepted.settimeout(1.0)
    return received(lambda: accepted.recv(1)) == "1 bytes"


def cut(world: World) -> Callable[[], None]:
    """From now on nothing passes between the two pods, until what it returns is called."""
    node, address = world.node_of(world.server), world.server.address(4)
    filters = [world.filter(node, "forward", f"ip {way} {address} drop") for way in ("saddr", "daddr")]

    def come_back() -> None:
        for one in filters:
            one()

    return come_back


def keep_alive(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def silence(one: socket.socket) -> Observation:
    """What a read says in the end, and when."""
    one.settimeout(LIMIT)
    start = time.monotonic()
    return {"read": received(lambda: one.recv(1)), "time": Seconds(time.monotonic() - start)}


@case(FAR_MESH, FAR_OUTWARD, notices=RESET)
def test_client_keeps_alive(world: World) -> Observation:
    """A client with keepalive (a second, three probes) waits for a server that has become silent."""
    world.serve()
    client = dial(world)
    keep_alive(client)
    assert echoes(client)
    cut(world)
    return silence(client)


@case(FAR_MESH, FAR_OUTWARD, notices=RESET)
def test_server_keeps_alive(world: World) -> Observation:
    """A server with keepalive (a second, three probes) waits for a client that has become silent."""
    _, accepted = connected(world)
    keep_alive(accepted)
    cut(world)
    return silence(accepted)


@case(FAR_MESH, FAR_OUTWARD, notices=RESET)
def test_client_sends_into_silence(world: World) -> Observation:
    """A client with TCP_USER_TIMEOUT of 3 s sends to a server that has become silent."""
    world.serve()
    client = dial(world)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000)
    assert echoes(client)
    cut(world)
    sent = outcome(lambda: client.sendall(b"is anybody there"))
    return {"send": sent} | dict(silence(client))


@case(FAR_MESH, FAR_OUTWARD)
def test_nobody_asks(world: World) -> Observation:
    """A client without keepalive reads from a server that is silent for five seconds, and comes back."""
    client, accepted = connected(world)
    come_back = cut(world)
    time.sleep(5.0)
    come_back()
    accepted.sendall(b"here again")
    return {"read": received(lambda: client.recv(10))}


@case(FAR_MESH, FAR_OUTWARD)
def test_dials_after_an_outage(world: World) -> Observation:
    """A client sends while the network is gone for four seconds. When it is back, another connection is dialled."""
    world.serve()
    client = dial(world)
    come_back = cut(world)
    client.sendall(b"a")
    time.sleep(4.0)
    come_back()
    another = world.new_socket(LIMIT)
    another.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 6)
    result = outcome(lambda: another.connect(world.target))
    return {"connect()": result, "echo": echoes(another), "old connection": received(lambda: client.recv(1))}
