"""What a change of the mesh concerns: every decision that it changes, and few others."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest

from nodeseal.mesh import concern as module
from nodeseal.mesh import decide
from nodeseal.mesh.address import Address, ApplicationAddress, OriginalDestination, TunnelAddress
from nodeseal.mesh.concern import Concern, Concerns
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.model import KINDS, Mesh, MeshDifference, MeshError, Mode, Phase, Service, ServicePort, Workload
from nodeseal.mesh.model import WorkloadName as Name
from nodeseal.mesh.node import NODES, Node
from nodeseal.mesh.service import SERVICES, Front, NodeEndpoints, Way
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.mesh.workload import WORKLOADS

DOMAIN = "example.org"
NODE_NAMES = ("n1", "n2")
HOSTS = tuple(map(ip_address, ("10.9.0.1", "10.9.0.2")))
PODS = tuple(map(ip_address, ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")))
VIPS = tuple(map(ip_address, ("10.96.0.1", "10.96.0.2", "10.96.0.3")))
EVERYWHERE = (*PODS, *HOSTS, *VIPS, ip_address("192.0.2.1"))
PORTS = (80, 81, 30080, 30081)
NAMES = tuple(Name("shop", name) for name in ("a", "b", "c", "d"))
SERVICE_NAMES = tuple(Name("shop", name) for name in ("s", "t", "u"))
NODES_OF_ALL = tuple(Node(name, (address,)) for name, address in zip(NODE_NAMES, HOSTS, strict=True))


def workload(dice: random.Random, name: Name) -> Workload:
    node = dice.randrange(2)
    excluded = Exclusions(inbound=Excluded((PortRange(80, 80),))) if dice.random() < 0.2 else NO_EXCLUSIONS
    of_host = dice.random() < 0.25
    addresses = (HOSTS[node],) if of_host else tuple(dice.sample(PODS, dice.choice((1, 1, 2))))
    ports = (PortRange(80, 80),) if name in NAMES[:2] else (PortRange(81, 81),)
    host = HostPlace(f"/{name.name}", ports) if of_host else None
    return Workload(
        name, dice.choice(("one", "other")), NODE_NAMES[node], addresses, None, True, dice.choice(tuple(Mode)),
        dice.choice(tuple(Phase)), excluded, host=host,
    )  # fmt: skip


def endpoints(dice: random.Random) -> tuple[ApplicationAddress, ...]:
    places = [ApplicationAddress(address, port) for address in (*PODS, HOSTS[0]) for port in (80, 81)]
    return tuple(dice.sample(places, dice.randrange(3)))


def service(dice: random.Random, name: Name) -> Service:
    place = SERVICE_NAMES.index(name)
    if dice.random() < 0.4:
        ends = tuple(dice.sample(NAMES, dice.randrange(3)))
        return Service(name, (VIPS[place],), (ServicePort(80, dice.choice((80, 81))),), ends)
    shown = dice.choice(VIPS)
    ways = {
        Way.CLUSTER: ((shown,), 80),
        Way.EXTERNAL: ((dice.choice(EVERYWHERE),), 80),
        Way.LOAD_BALANCER: ((dice.choice(VIPS),), 81),
        Way.NODE: ((), dice.choice((30080, 30081))),
    }
    fronts = []
    for way in dice.sample(tuple(ways), dice.randrange(1, 4)):
        addresses, port = ways[way]
        by_node = tuple(NodeEndpoints(node, endpoints(dice)) for node in NODE_NAMES) if way is Way.NODE else None
        fronts.append(Front(way, 4, addresses, port, 80, endpoints(dice), dice.random() < 0.3, by_node=by_node))
    return Service(name, (), (), (), tuple(fronts))


def changed(dice: random.Random, mesh: Mesh) -> MeshDifference:
    """Some of it is another, or gone, or comes."""
    put: dict[str, tuple[Any, ...]] = {}
    removed: dict[str, tuple[Any, ...]] = {}
    for kind, names, make in ((WORKLOADS, NAMES, workload), (SERVICES, SERVICE_NAMES, service)):
        some = dice.sample(names, dice.choice((0, 1, 1, 2)))
        there = mesh.tables[kind.name].items
        gone = [name for name in some if name in there and dice.random() < 0.4]
        removed[kind.name] = tuple(gone)
        put[kind.name] = tuple(make(dice, name) for name in some if name not in gone)
    return MeshDifference(DOMAIN, put, removed)


def decisions(mesh: Mesh) -> dict[tuple[Name, Address | None, Address, int, str], Any]:
    """(workload, source, destination, port, what) -> what is decided."""
    found: dict[tuple[Name, Address | None, Address, int, str], Any] = {}
    peer = SpiffeId(DOMAIN, "shop", "one")
    for name in NAMES:
        for address in EVERYWHERE:
            for port in PORTS:
                for live in (False, True):
                    place = OriginalDestination(address, port)
                    answer = decide.outbound(mesh, name, place, established=live)
                    found[name, None, address, port, f"outbound, {live}"] = answer
        for source in EVERYWHERE:
            for port in (80, 81):
                for live in (False, True):
                    answered = decide.inbound_plaintext(mesh, name, source, port, established=live)
                    found[name, source, PODS[0], port, f"plaintext, {live}"] = answered
                for own in (PODS[0], HOSTS[0]):
                    tunnelled = decide.inbound_tunnel(mesh, name, peer, source, TunnelAddress(own, port))
                    found[name, source, own, port, "tunnel"] = tunnelled
    return found


def asked_again(concern: Concern | None, name: Name, source: Address | None, destination: Address, port: int) -> bool:
    """As the core does it (cext/src/decisions/concern.h)."""
    if concern is None:
        return True
    return (
        name in concern.workloads
        or port in concern.ports
        or destination in concern.addresses
        or source in concern.addresses
    )


def is_final(decision: Any) -> bool:
    """What is neither yes nor no is asked again in any case."""
    return not isinstance(decision, decide.Unavailable)


@pytest.mark.parametrize("seed", range(12))
def test_no_decision_that_changes_is_left_out(seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311
    empty = Mesh.from_difference(MeshDifference(DOMAIN, {NODES.name: NODES_OF_ALL}))
    concerns = Concerns()
    mesh, before = empty, decisions(empty)
    concerns.begin(mesh)
    kept = total = 0
    for _ in range(25):
        difference = changed(dice, mesh)
        try:
            after = mesh.apply(difference)
        except MeshError:
            continue  # two at one place that cannot be
        concern = concerns.take(mesh, difference, after)
        now = decisions(after)
        for (name, source, destination, port, what), decision in before.items():
            again = asked_again(concern, name, source, destination, port)
            if decision != now[name, source, destination, port, what] and is_final(decision):
                assert again, (name, source, destination, port, what, difference)
            kept += not again
            total += 1
        mesh, before = after, now
    assert kept > total / 20, "it is no use if all is asked again"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {WORKLOADS.name, SERVICES.name}))
def test_other_kinds_concern_everything(kind: str) -> None:
    mesh = Mesh.from_difference(MeshDifference(DOMAIN))
    concerns = Concerns()
    assert concerns.take(mesh, MeshDifference(DOMAIN, removed={kind: ("x",)}), mesh) is None


def test_another_trust_domain_concerns_everything() -> None:
    mesh = Mesh.from_difference(MeshDifference(DOMAIN))
    other = mesh.apply(MeshDifference("other.example"))
    assert Concerns().take(mesh, MeshDifference("other.example"), other) is None


def test_very_much_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh.from_difference(MeshDifference(DOMAIN))
    dice = random.Random(1)  # noqa: S311
    difference = MeshDifference(DOMAIN, {WORKLOADS.name: tuple(workload(dice, name) for name in NAMES[:1])})
    after = mesh.apply(difference)
    assert Concerns().take(mesh, difference, after) is not None
    monkeypatch.setattr(module, "MOST", 0)
    assert Concerns().take(mesh, difference, after) is None


def test_nothing_is_remembered_of_services_that_are_gone() -> None:
    concerns = Concerns()
    mesh = Mesh.from_difference(MeshDifference(DOMAIN, {NODES.name: NODES_OF_ALL}))
    dice = random.Random(3)  # noqa: S311
    for _ in range(30):
        difference = changed(dice, mesh)
        try:
            after = mesh.apply(difference)
        except MeshError:
            continue
        concerns.take(mesh, difference, after)
        mesh = after
    last = MeshDifference(DOMAIN, removed={SERVICES.name: tuple(mesh.services)})
    concerns.take(mesh, last, mesh.apply(last))
    assert concerns._leading._keys == {}
