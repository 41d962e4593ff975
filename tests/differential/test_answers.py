"""What connect() says of the other side: nobody listens, nobody answers, no way leads there, somebody is slow."""

from __future__ import annotations

import contextlib
import socket
import threading

from differential.case import case
from differential.observation import Observation, Seconds, outcome, received, timed
from differential.router import HOST, NETWORK, PROHIBITED
from differential.setting import EVERYWHERE, NODE_OUTWARD, OUTWARD, PODS_ONLY
from differential.world import World
from support.connection import echoes, receive_exactly

UNROUTED = {4: "198.51.100.9", 6: "2001:db8::9"}
"""Nobody's address (RFC 5737, RFC 3849)."""

BOTH = (4, 6)


@case(*EVERYWHERE, versions=BOTH)
def test_closed_port(world: World) -> Observation:
    """A client dials a port where nobody listens."""
    client = world.new_socket(None)
    result, seconds = timed(lambda: client.connect(world.target))
    return {"connect()": result, "time": seconds}


@case(*EVERYWHERE, versions=BOTH)
def test_open_port(world: World) -> Observation:
    """A client dials a server, sends, gets an answer, and both end."""
    world.serve()
    client = world.new_socket(None)
    result, seconds = timed(lambda: client.connect(world.target))
    client.sendall(b"a line")
    answer = receive_exactly(client, 6)
    client.shutdown(socket.SHUT_WR)
    return {"connect()": result, "time": seconds, "answer": answer, "then": received(lambda: client.recv(1))}


@case(*PODS_ONLY, versions=BOTH)
def test_filtered_port(world: World) -> Observation:
    """A client dials a port whose SYNs a firewall at the server drops."""
    world.filter(world.server.plan.netns, "input", f"tcp dport {world.port} drop")
    world.serve()
    client = world.new_socket(None)
    result, seconds = timed(lambda: client.connect(world.target))
    return {"connect()": result, "time": seconds}


@case(*PODS_ONLY, versions=BOTH)
def test_firewall_refuses(world: World) -> Observation:
    """A client dials a port that a firewall at the server refuses with a RST."""
    world.filter(world.server.plan.netns, "input", f"tcp dport {world.port} reject with tcp reset")
    world.serve()
    client = world.new_socket(None)
    result, seconds = timed(lambda: client.connect(world.target))
    return {"connect()": result, "time": seconds}


@case(OUTWARD, versions=BOTH)
def test_host_unreachable(world: World) -> Observation:
    """A client dials an address outside the mesh, and a router says that the host cannot be reached."""
    return unreachable(world, HOST)


@case(OUTWARD, versions=BOTH)
def test_network_unreachable(world: World) -> Observation:
    """A client dials an address outside the mesh, and a router says that there is no way to its network."""
    return unreachable(world, NETWORK)


@case(OUTWARD, versions=BOTH)
def test_prohibited(world: World) -> Observation:
    """A client dials an address outside the mesh, and a router says that it is prohibited."""
    return unreachable(world, PROHIBITED)


def unreachable(world: World, says: str) -> Observation:
    world.router_says(UNROUTED[world.version], says)
    client = world.new_socket(None)
    result, seconds = timed(lambda: client.connect((UNROUTED[world.version], world.port)))
    return {"connect()": result, "time": seconds}


@case(OUTWARD, NODE_OUTWARD, versions=BOTH)
def test_no_route(world: World) -> Observation:
    """A client dials an address to which its own namespace has no route."""
    address = UNROUTED[world.version]
    world.route(world.client.plan.netns, "unreachable", address)
    client = world.new_socket(None)
    result, seconds = timed(lambda: client.connect((address, world.port)))
    return {"connect()": result, "time": seconds}


@case(*EVERYWHERE)
def test_slow_accept(world: World) -> Observation:
    """A server accepts a second after the client has connected and sent."""
    listener = world.listen()
    client = world.new_socket(None)
    result, seconds = timed(lambda: client.connect(world.target))
    client.sendall(b"early")
    late = threading.Event()
    late.wait(1.0)
    accepted = world.closing(listener.accept()[0])
    accepted.settimeout(10)
    return {"connect()": result, "time": seconds, "server reads": receive_exactly(accepted, 5)}


@case(*PODS_ONLY)
def test_full_backlog(world: World) -> Observation:
    """A server's queue of connections is full; the server takes one out later, and a client that waits is served."""
    listener = world.listen(0)
    first = world.dial()
    queue = [world.new_socket(None)]
    results: dict[int, tuple[str, Seconds]] = {}

    def dial(number: int) -> None:
        results[number] = timed(lambda: queue[number].connect(world.target))

    threads = [threading.Thread(target=dial, args=(number,)) for number in range(len(queue))]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.7)
    waiting = len(queue) - len(results)
    listener.settimeout(8)
    accepted = 0
    with contextlib.suppress(TimeoutError):
        while accepted < 1 + len(queue):
            world.closing(listener.accept()[0])
            accepted += 1
    for thread in threads:
        thread.join()
    first.close()
    return {
        "clients that wait": waiting,
        "connect()": sorted(result for result, _ in results.values()),
        "accepted": accepted,
    }


@case(*PODS_ONLY)
def test_late_answer(world: World) -> Observation:
    """A firewall at the server drops the first SYNs, and lets in those that come after a second and a half."""
    let_in = world.filter(world.server.plan.netns, "input", f"tcp dport {world.port} drop")
    world.serve()
    client = world.new_socket(None)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 6)
    timer = threading.Timer(1.5, let_in)
    timer.start()
    result, seconds = timed(lambda: client.connect(world.target))
    timer.join()
    return {"connect()": result, "time": seconds, "answer": outcome(lambda: echoes(client))}
