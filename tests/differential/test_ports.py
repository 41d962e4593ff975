"""Addresses and ports: who is seen as whom, what can be bound, what is used again, what is translated on the way."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from differential.case import Notice, case
from differential.notices import FORWARDED_SOURCE, LEG_HAS_THE_PORT, UNKNOWN_VIP
from differential.observation import Observation, outcome
from differential.setting import EVERYWHERE, FAR_MESH, MESH, PODS_ONLY, ROAMER_MESH, ROAMER_OUTWARD
from differential.world import World
from support.connection import echoes, receive_exactly, reset

BOTH = (4, 6)
VIP = {4: "198.51.100.20", 6: "2001:db8::20"}
"""Of a service that nodeseal knows nothing of (RFC 5737, RFC 3849)."""


@case(*EVERYWHERE, versions=BOTH)
def test_addresses(world: World) -> Observation:
    """Client and server ask for the addresses and ports of their connection."""
    client, accepted = world.connected()
    return {
        "client's peer is what it dialled": client.getpeername()[:2] == world.target,
        "client's own address": client.getsockname()[0],
        "server's own address": accepted.getsockname()[:2],
        "server's peer's address": accepted.getpeername()[0],
        "server's peer's port is the client's": accepted.getpeername()[1] == client.getsockname()[1],
    }


def bound(world: World, port: int, *, share: bool = True) -> socket.socket:
    """A client's socket at this port."""
    client = world.new_socket()
    if share:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((world.source, port))
    return client


@case(*EVERYWHERE, versions=BOTH)
def test_bound_port(world: World) -> Observation:
    """A client binds its port before it dials."""
    listener = world.listen()
    client = bound(world, world.more_ports[0])
    result = outcome(lambda: client.connect(world.target))
    accepted, peer = listener.accept()
    world.closing(accepted)
    return {"connect()": result, "own port": client.getsockname()[1] == world.more_ports[0], "server sees": peer[:2]}


@case(*PODS_ONLY)
def test_privileged_port(world: World) -> Observation:
    """A client dials from a port below 1024, as rsh and NFS do; the server admits nobody else."""
    listener = world.listen()
    client = bound(world, 700 + world.more_ports[0] % 300)
    result = outcome(lambda: client.connect(world.target))
    accepted, peer = listener.accept()
    world.closing(accepted)
    return {"connect()": result, "server sees a privileged port": peer[1] < 1024}


@case(*PODS_ONLY)
def test_port_again_after_server_closed(world: World) -> Observation:
    """Five times, one at once after the other, a client dials from one port; the server closes first, and its end is in
    TIME_WAIT then."""
    results = []
    listener = world.listen()
    for _ in range(5):
        client = bound(world, world.more_ports[0])
        results.append(outcome(lambda client=client: client.connect(world.target)))  # type: ignore[misc]
        accepted, _ = listener.accept()
        accepted.sendall(b"bye")
        accepted.close()
        results.append(receive_exactly(client, 3).decode() + client.recv(1).decode())
        client.close()
    return {"in turn": results}


@case(*PODS_ONLY)
def test_port_again_after_reset(world: World) -> Observation:
    """Twenty times, one at once after the other, a client dials from one port, is answered, and resets."""
    world.serve()
    results = []
    for number in range(20):
        client = bound(world, world.more_ports[0])
        results.append(outcome(lambda client=client: client.connect(world.target)))  # type: ignore[misc]
        results.append(str(echoes(client, b"%d" % number)))
        reset(client)
    return {"in turn": results}


@case(*PODS_ONLY)
def test_port_again_in_time_wait(world: World) -> Observation:
    """A client closes first, and dials again from the same port to the same server at once: its own end is in
    TIME_WAIT."""
    world.serve()
    results = []
    for _ in range(2):
        client = bound(world, world.more_ports[0])
        results.append(outcome(lambda client=client: client.connect(world.target)))  # type: ignore[misc]
        if results[-1] == "ok":
            echoes(client)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
        client.close()
    return {"in turn": results}


@case(*PODS_ONLY)
def test_one_port_to_two_servers(world: World) -> Observation:
    """A client dials two ports of the server from one port of its own."""
    world.serve()
    world.serve(port=world.more_ports[0])
    clients = [bound(world, world.more_ports[1]) for _ in range(2)]
    results = [
        outcome(lambda client=client, port=port: client.connect((world.target[0], port)))  # type: ignore[misc]
        for client, port in zip(clients, (world.port, world.more_ports[0]), strict=True)
    ]
    return {"connect()": results, "echo": [echoes(client) for client in clients]}


@case(ROAMER_MESH, ROAMER_OUTWARD)
def test_many_from_all_ports(world: World) -> Observation:
    """2,000 connections, 20 at a time, from a pod whose port range is 1024 to 65535; each is answered and closed."""
    world.serve(backlog=1024)
    before = world.client.run(_port_range)
    world.client.sysctl("ipv4/ip_local_port_range", "1024\t65535")
    world.at_end(lambda: world.client.sysctl("ipv4/ip_local_port_range", before))

    def talk(_number: int) -> str:
        client = world.client.make_socket(world.family)
        with client:
            client.settimeout(30)
            return outcome(lambda: (client.connect(world.target), echoes(client)))  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(20) as threads:
        results = list(threads.map(talk, range(2000)))
    return {"failed": sorted(result for result in results if result != "ok"), "all": len(results)}


def _port_range() -> str:
    return Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().strip()


@case(FAR_MESH)
def test_listen_ports_stay_free(world: World) -> Observation:
    """While 300 connections are open, an application in the server's pod binds 500 ports out of the clients' range."""
    world.serve(backlog=512)
    for _ in range(300):
        assert echoes(world.dial())
    taken = 0
    for number in range(500):
        with world.server.make_socket(socket.AF_INET) as listener:
            taken += outcome(lambda listener=listener, port=2000 + 50 * number: listener.bind(("", port))) != "ok"  # type: ignore[misc]
    return {"ports that cannot be bound": taken}


@case(*PODS_ONLY, notices=(Notice("bind()", "the port is in use", LEG_HAS_THE_PORT, where=(MESH,)),))
def test_listens_at_the_clients_port(world: World) -> Observation:
    """While a client is connected, an application in the server's pod binds the port that the client has, at any
    address; then it does with SO_REUSEADDR."""
    world.serve()
    client = bound(world, world.more_ports[0])
    client.connect(world.target)
    seen: dict[str, object] = {"echo": echoes(client)}
    for name, share in (("bind()", 0), ("bind() with SO_REUSEADDR", 1)):
        with world.server.make_socket(socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, share)
            seen[name] = outcome(lambda listener=listener: listener.bind(("", world.more_ports[0])))  # type: ignore[misc]
    return seen


@case(
    *PODS_ONLY,
    notices=(Notice("server sees", "the server sees the client's own address", FORWARDED_SOURCE, where=(MESH,)),),
)
def test_masquerade(world: World) -> Observation:
    """The client's node translates its address and chooses ports at random; 200 connections."""
    node = world.node_of(world.client)
    world.nat(node, "postrouting", f"ip saddr {world.source} ip daddr {world.server.address(4)} masquerade random")
    served = world.serve(backlog=512)
    results = set()
    for _ in range(200):
        client = world.dial()
        results.add(echoes(client))
        client.close()
    return {"echo": results, "server sees": {peer[0] for peer in served.peers}, "connections": len(served.peers)}


@case(
    *PODS_ONLY,
    versions=BOTH,
    notices=(Notice("connect()", "the connection is reset", UNKNOWN_VIP, where=(MESH,)),),
)
def test_translated_vip(world: World) -> Observation:
    """A client dials a virtual address that its node translates (DNAT), of which the mesh state knows nothing."""
    vip, family = VIP[world.version], "ip6" if world.version == 6 else "ip"
    at = f"[{world.server.address(6)}]" if world.version == 6 else world.server.address(4)
    world.nat(world.node_of(world.client), "prerouting", f"{family} daddr {vip} tcp dport 80 dnat to {at}:{world.port}")
    world.serve()
    client = world.new_socket()
    result = outcome(lambda: (client.connect((vip, 80)), echoes(client)))  # type: ignore[func-returns-value]
    return {"connect()": result}


@case(*PODS_ONLY)
def test_dials_back(world: World) -> Observation:
    """A server dials its client back, at the client's address and a port that the client told, as FTP does."""
    listener = world.closing(world.client.make_socket(world.family))
    listener.bind((world.source, 0))
    listener.listen()
    listener.settimeout(30)

    def handler(connection: socket.socket) -> None:
        port = int(receive_exactly(connection, 5))
        with world.server.make_socket(world.family) as back:
            back.settimeout(30)
            back.connect((connection.getpeername()[0], port))
            back.sendall(b"data")

    world.serve(handler)
    client = world.dial()
    client.sendall(b"%05d" % listener.getsockname()[1])
    accepted, peer = listener.accept()
    world.closing(accepted)
    return {"from": peer[0], "got": receive_exactly(accepted, 4)}


@case(*PODS_ONLY, versions=BOTH)
def test_own_address(world: World) -> Observation:
    """A client dials a server in its own pod, at the pod's address."""
    listener = world.closing(world.client.make_socket(world.family))
    listener.bind((world.source, 0))
    listener.listen()
    client = world.dial_to(listener.getsockname()[:2])
    accepted, peer = listener.accept()
    with accepted:
        client.sendall(b"x")
        return {"server sees": peer[:2] == client.getsockname()[:2], "got": receive_exactly(accepted, 1)}
