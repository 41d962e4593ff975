"""Socket options: what they do, and what they tell."""

from __future__ import annotations

import socket

from differential.case import Notice, case
from differential.notices import APP_MARK, LISTENER_MARK, LOOPBACK, OUR_MARK
from differential.observation import Observation, outcome
from differential.setting import MESH, PODS_ONLY
from differential.world import World
from support.connection import echoes
from support.tcp_table import ESTABLISHED

SO_MARK, SO_BINDTODEVICE, IP_MTU = 36, 25, 14  # asm-generic/socket.h, linux/in.h
OWN_MARK = 0x77


def option(one: socket.socket, level: int, name: int) -> int:
    return one.getsockopt(level, name)


@case(*PODS_ONLY)
def test_keepalive_is_kept(world: World) -> Observation:
    """Client and server set and read keepalive, TCP_USER_TIMEOUT, TCP_NODELAY and sizes of buffers."""
    client, accepted = world.connected()
    seen: dict[str, object] = {}
    for name, one in (("client", client), ("server", accepted)):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        for number, option_name in enumerate(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"), 7):
            one.setsockopt(socket.IPPROTO_TCP, getattr(socket, option_name), number)
            seen[f"{name}'s {option_name}"] = option(one, socket.IPPROTO_TCP, getattr(socket, option_name))
        seen[f"{name}'s SO_KEEPALIVE"] = option(one, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        seen[f"{name}'s SO_RCVBUF"] = option(one, socket.SOL_SOCKET, socket.SO_RCVBUF)
    return seen | {"echo": echoes_to(client, accepted)}


@case(*PODS_ONLY)
def test_options_of_the_listener_are_inherited(world: World) -> Observation:
    """A server sets options on its listening socket, and reads them from what it accepts."""

    def prepare(listener: socket.socket) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000)

    listener = world.listen(prepare=prepare)
    client = world.dial()
    accepted = world.closing(listener.accept()[0])
    return {
        "SO_KEEPALIVE": option(accepted, socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "TCP_NODELAY": option(accepted, socket.IPPROTO_TCP, socket.TCP_NODELAY),
        "TCP_USER_TIMEOUT": option(accepted, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        "echo": echoes_to(client, accepted),
    }


@case(*PODS_ONLY)
def test_state(world: World) -> Observation:
    """Client and server ask for the state of their connection (TCP_INFO), before and after a half close."""
    client, accepted = world.connected()
    echoes_to(client, accepted)
    before = [info_state(client), info_state(accepted)]
    client.shutdown(socket.SHUT_WR)
    accepted.recv(1)
    return {"before": before, "server after the client's end": info_state(accepted)}


@case(
    *PODS_ONLY,
    notices=(
        Notice("client's TCP_MAXSEG", "it is larger", LOOPBACK, where=(MESH,)),
        Notice("server's TCP_MAXSEG", "it is larger", LOOPBACK, where=(MESH,)),
        Notice("client's IP_MTU", "it is lo's", LOOPBACK, where=(MESH,)),
        Notice("server's IP_MTU", "it is lo's", LOOPBACK, where=(MESH,)),
    ),
)
def test_sizes_of_segments(world: World) -> Observation:
    """Client and server ask how large segments are (TCP_MAXSEG, IP_MTU)."""
    client, accepted = world.connected()
    return {
        f"{who}'s {name}": option(one, level, number)
        for who, one in (("client", client), ("server", accepted))
        for name, level, number in (
            ("TCP_MAXSEG", socket.IPPROTO_TCP, socket.TCP_MAXSEG),
            ("IP_MTU", socket.IPPROTO_IP, IP_MTU),
        )
    }


@case(
    *PODS_ONLY,
    notices=(
        Notice("client's", "it is nodeseal's", OUR_MARK, where=(MESH,)),
        Notice("server's", "it is nodeseal's", OUR_MARK, where=(MESH,)),
    ),
)
def test_mark_is_read(world: World) -> Observation:
    """Client and server, neither of which has set a mark, read SO_MARK."""
    client, accepted = world.connected()
    return {
        "client's": option(client, socket.SOL_SOCKET, SO_MARK),
        "server's": option(accepted, socket.SOL_SOCKET, SO_MARK),
    }


@case(*PODS_ONLY, notices=(Notice("mark", "the mark gives way", APP_MARK, where=(MESH,)),))
def test_client_has_a_mark(world: World) -> Observation:
    """A client sets SO_MARK before it dials, and reads it afterwards."""
    world.serve()
    client = world.new_socket()
    client.setsockopt(socket.SOL_SOCKET, SO_MARK, OWN_MARK)
    result = outcome(lambda: client.connect(world.target))
    return {"connect()": result, "echo": echoes(client), "mark": option(client, socket.SOL_SOCKET, SO_MARK) == OWN_MARK}


@case(*PODS_ONLY)
def test_client_is_bound_to_a_device(world: World) -> Observation:
    """A client is bound to its pod's device (SO_BINDTODEVICE)."""
    world.serve()
    client = world.new_socket()
    client.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0")
    result = outcome(lambda: client.connect(world.target))
    return {"connect()": result, "echo": outcome(lambda: echoes(client))}


@case(*PODS_ONLY)
def test_server_is_bound_to_a_device(world: World) -> Observation:
    """A server's listening socket is bound to its pod's device (SO_BINDTODEVICE)."""
    listener = world.listen(prepare=lambda one: one.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0"))
    client = world.new_socket()
    result = outcome(lambda: client.connect(world.target))
    listener.settimeout(3)
    return {"connect()": result, "accept()": outcome(lambda: world.closing(listener.accept()[0]))}


@case(
    *PODS_ONLY,
    notices=(
        Notice("connect()", "nobody answers", LISTENER_MARK, where=(MESH,)),
        Notice("accept()", "the connection never arrives", LISTENER_MARK, where=(MESH,)),
    ),
)
def test_server_has_a_mark(world: World) -> Observation:
    """A server's listening socket has a mark of its own (SO_MARK)."""
    listener = world.listen(prepare=lambda one: one.setsockopt(socket.SOL_SOCKET, SO_MARK, OWN_MARK))
    client = world.new_socket()
    result = outcome(lambda: client.connect(world.target))
    listener.settimeout(3)
    return {"connect()": result, "accept()": outcome(lambda: world.closing(listener.accept()[0]))}


@case(*PODS_ONLY)
def test_type_of_service(world: World) -> Observation:
    """A client sets IP_TOS and a time to live, and reads them."""
    client, accepted = world.connected()
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
    return {
        "IP_TOS": option(client, socket.IPPROTO_IP, socket.IP_TOS),
        "IP_TTL": option(client, socket.IPPROTO_IP, socket.IP_TTL),
        "echo": echoes_to(client, accepted),
    }


def info_state(one: socket.socket) -> str:
    """The first byte of struct tcp_info, in words."""
    state = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[0]
    return {ESTABLISHED: "established", 8: "close-wait"}.get(state, f"state {state}")


def echoes_to(client: socket.socket, accepted: socket.socket) -> bool:
    """Whether bytes go there and back."""
    client.sendall(b"there")
    there = accepted.recv(5)
    accepted.sendall(b"back")
    return (there, client.recv(4)) == (b"there", b"back")
