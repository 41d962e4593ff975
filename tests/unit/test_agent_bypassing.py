"""What the agent puts into the map of what passes by the core."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from nodeseal.capture.bypass import (
    Entries,
    exclusion_entries,
    extent_entries,
    inside_entries,
    node_entries,
    peer_entries,
)
from nodeseal.capture.errors import CaptureError
from nodeseal.enrolment import bypass_keeper
from nodeseal.enrolment.bypass_keeper import NO_EXTENT, BypassKeeper
from nodeseal.local.config import NodeAddresses
from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.extent import Extent
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.model import Mesh, Mode, Phase, Service, ServicePort, Workload, WorkloadName
from nodeseal.mesh.node import Node
from nodeseal.mesh.service import Front, Way
from support.agent_fakes import FakeBypass, mesh, status_of, until, workload

EXCLUDE = Exclusions(inbound=Excluded(ports=(PortRange(8000, 8010),)))
VIP, NEXT_VIP = IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")
GATEWAY, UPLINK = IPv4Address("10.0.1.1"), IPv4Address("192.0.2.1")
TRUSTED = NodeAddresses(trusted=(IPv4Network("198.51.100.0/24"),))


def peer(one: Workload) -> Entries:
    return peer_entries(one.addresses, one.exclude)


def away(name: str, phase: Phase, **changes: Any) -> Workload:
    return workload(name, None, node="node2", phase=phase, **changes)


def with_service(address: IPv4Address, *workloads: Workload) -> Mesh:
    service = Service(
        WorkloadName("default", "web"), (address,), (ServicePort(80, 80),), tuple(one.key for one in workloads)
    )
    return Mesh.build("example.org", workloads, [service])


class Kept:
    """A keeper of node1 and the map that it keeps."""

    def __init__(self, wanted: NodeAddresses = TRUSTED, extent: Extent = NO_EXTENT) -> None:
        self.map = FakeBypass()
        self.rules: list[dict[str, Excluded]] = []
        self.capture = status_of(bypass=self.map, has_rules=False, set_bypass=self._set_bypass)
        self.keeper = BypassKeeper(self.capture, "node1", wanted, extent)
        self.extent = extent

    async def _set_bypass(self, bypass: dict[str, Excluded]) -> None:
        if self.map.error is not None:
            raise self.map.error
        self.rules.append(bypass)

    def after(self, *states: Mesh) -> Entries:
        """What is in the map, but for the node's addresses, when these have followed each other."""

        async def story() -> None:
            for state in states:
                await self.keeper.take(state)

        asyncio.run(story())
        node = node_entries((), self.keeper._wanted.trusted) | extent_entries(self.extent)
        assert node.items() <= self.map.entries.items()
        return {key: value for key, value in self.map.entries.items() if key not in node}


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_enrolled_workloads_of_all_nodes_are_peers(kept: Kept) -> None:
    enrolled, joining = away("a", Phase.ENROLLED), away("b", Phase.JOINING, exclude=EXCLUDE)
    state = mesh(enrolled, joining, away("c", Phase.ABSENT, exclude=EXCLUDE), away("d", Phase.LEAVING))
    assert kept.after(state) == peer(enrolled) | peer(joining)


def test_own_workloads_exclude_before_they_are_enrolled(kept: Kept) -> None:
    own = workload("a", None, exclude=EXCLUDE)
    assert kept.after(mesh(own)) == exclusion_entries(own.addresses, EXCLUDE)
    assert kept.after(mesh(own), mesh(own.in_phase(Phase.LEAVING))) == exclusion_entries(own.addresses, EXCLUDE)


A, B = away("a", Phase.ENROLLED), away("b", Phase.ENROLLED, exclude=EXCLUDE)
LB, OF_NODE = IPv4Address("198.18.0.80"), IPv4Address("198.18.0.10")


def with_fronts(*ends: Workload, leading: Workload = A, at: IPv4Address = LB, nodes: bool = True) -> Mesh:
    """Services that lead to one: `web` is dialled at VIP, at `at` and at nodes, `other` at `at` as well, and `outer` at
    NEXT_VIP, which is nobody's alone."""
    endpoints = (ApplicationAddress(leading.addresses[0], 80),)
    ways = (Front(Way.CLUSTER, 4, (VIP,), 80, 80, endpoints), Front(Way.NODE, 4, (), 30080, 80, endpoints))
    services = [
        Service(name, (), (), (), fronts)
        for name, fronts in (
            (WorkloadName("default", "web"), (*ways, Front(Way.LOAD_BALANCER, 4, (at,), 80, 80, endpoints))),
            (WorkloadName("default", "other"), (Front(Way.EXTERNAL, 4, (at,), 81, 81, endpoints),)),
            (WorkloadName("default", "outer"), (Front(Way.EXTERNAL, 4, (NEXT_VIP,), 80, 80, ()),)),
        )
    ]
    workloads = {one.key: one for one in (*ends, leading)}.values()
    return Mesh.build("example.org", workloads, services, nodes=[Node("node2", (OF_NODE,))][:nodes])


AT_NODE = away("p", Phase.ENROLLED, addresses=(OF_NODE,), host=HostPlace("/p", (PortRange(9000, 9000),)))
STATES = [
    with_fronts(B),
    with_fronts(B, leading=A.in_phase(Phase.ABSENT)),
    with_fronts(leading=B),
    with_fronts(at=OF_NODE),
    with_fronts(at=OF_NODE, nodes=False),
    with_fronts(AT_NODE, at=OF_NODE),
    with_fronts(AT_NODE, at=OF_NODE, nodes=False),
    with_fronts(AT_NODE, leading=AT_NODE),
    with_fronts(B, at=B.addresses[0]),
    with_fronts(B, away("c", Phase.ABSENT, addresses=B.addresses), leading=B),
    mesh(AT_NODE),
    mesh(),
    mesh(A),
    mesh(A, B),
    mesh(A.in_phase(Phase.ABSENT), B),
    mesh(away("a", Phase.ENROLLED, exclude=EXCLUDE)),
    mesh(away("a", Phase.ENROLLED, addresses=B.addresses)),
    mesh(away("a", Phase.ENROLLED, addresses=B.addresses), away("b", Phase.ENROLLED, addresses=A.addresses)),
    with_service(VIP, A, B),
    with_service(NEXT_VIP, A, B),
    with_service(VIP, A.in_phase(Phase.ABSENT)),
    mesh(away("c", Phase.ENROLLED, addresses=(VIP,))),
    mesh(away("a", Phase.ENROLLED, addresses=(*A.addresses, *B.addresses)), B),
    mesh(away("a", Phase.ABSENT, addresses=(*A.addresses, *B.addresses)), B),
]


@pytest.mark.parametrize("new", STATES, ids=range(len(STATES)))
@pytest.mark.parametrize("old", STATES, ids=range(len(STATES)))
def test_change_leads_to_what_the_new_state_says(old: Mesh, new: Mesh) -> None:
    assert Kept().after(old, new) == Kept().after(new)


def test_an_address_stays_a_peer_while_one_of_its_processes_is(kept: Kept) -> None:
    both = [
        away(name, Phase.ENROLLED, addresses=A.addresses, host=HostPlace(f"/{name}", (PortRange(port, port),)))
        for name, port in (("a", 9000), ("b", 9001))
    ]
    shared = peer_entries(A.addresses, NO_EXCLUSIONS, shared=True)
    assert kept.after(mesh(*both), mesh(both[0].in_phase(Phase.ABSENT), both[1])) == shared
    assert kept.after(mesh(both[0].in_phase(Phase.ABSENT), both[1]), mesh(both[1])) == shared
    assert kept.after(mesh(*(one.in_phase(Phase.ABSENT) for one in both))) == {}


def test_what_is_excluded_at_an_address_that_two_claim_is_neithers_to_say(kept: Kept) -> None:
    rival = away("c", Phase.ABSENT, addresses=B.addresses)
    assert kept.after(mesh(B, rival)) == peer_entries(B.addresses, NO_EXCLUSIONS)
    assert kept.after(mesh(B, rival), mesh(B)) == peer(B)


def test_an_address_passes_from_a_node_to_a_workload_and_back(kept: Kept) -> None:
    process = away("p", Phase.ENROLLED, addresses=A.addresses, host=HostPlace("/p"))
    shared = peer_entries(A.addresses, NO_EXCLUSIONS, shared=True)
    assert kept.after(mesh(process), mesh(A)) == peer(A)
    assert kept.after(mesh(A), mesh(process)) == shared


def test_service_counts_as_enrolled_while_it_leads_to_somebody_who_is(kept: Kept) -> None:
    service = peer_entries([VIP], NO_EXCLUSIONS)
    assert kept.after(with_service(VIP, A, B)) == peer(A) | peer(B) | service
    absent = A.in_phase(Phase.ABSENT)
    assert kept.after(with_service(VIP, absent, B)) == peer(B) | service
    assert kept.after(with_service(VIP, absent)) == {}


def test_an_address_of_a_front_is_a_peers_while_it_leads_to_somebody_who_is_enrolled(kept: Kept) -> None:
    assert kept.after(with_fronts()) == peer(A) | peer_entries([VIP, LB], NO_EXCLUSIONS)
    assert kept.after(with_fronts(), with_fronts(leading=A.in_phase(Phase.ABSENT))) == {}


def test_a_nodes_address_is_no_peers_because_of_a_service(kept: Kept) -> None:
    assert kept.after(with_fronts(at=OF_NODE)) == peer(A) | peer_entries([VIP], NO_EXCLUSIONS)
    shared = peer_entries([OF_NODE], NO_EXCLUSIONS, shared=True)
    assert kept.after(with_fronts(AT_NODE, at=OF_NODE)) == peer(A) | peer_entries([VIP], NO_EXCLUSIONS) | shared


def test_a_workloads_address_is_its_own_whatever_a_service_says(kept: Kept) -> None:
    assert kept.after(with_fronts(B, at=B.addresses[0])) == peer(A) | peer(B) | peer_entries([VIP], NO_EXCLUSIONS)


def test_addresses_of_the_node_come_and_go(kept: Kept) -> None:
    async def story() -> None:
        await kept.keeper.take(mesh(A))
        for addresses in ({GATEWAY}, {GATEWAY, UPLINK}, {UPLINK}):
            await kept.keeper.set_local(frozenset(addresses))
            assert kept.map.entries == peer(A) | node_entries(addresses, TRUSTED.trusted)

    asyncio.run(story())
    assert kept.keeper.is_node(UPLINK)
    assert kept.keeper.is_node(IPv4Address("198.51.100.7"))
    assert not kept.keeper.is_node(GATEWAY)
    assert kept.keeper.shown() == ["192.0.2.1", "198.51.100.0/24"]


def test_addresses_that_are_known_before_the_first_state_are_in_it(kept: Kept) -> None:
    """A former agent's entries are replaced in one step: a probe at that moment is answered."""
    kept.keeper.local = frozenset({GATEWAY})
    asyncio.run(kept.keeper.take(mesh(A)))
    assert kept.map.entries == peer(A) | node_entries([GATEWAY], TRUSTED.trusted)


def test_what_a_former_agent_left_is_replaced(kept: Kept) -> None:
    kept.map.entries = peer(B)
    assert kept.after(mesh(A)) == peer(A)


SMALL = Extent((IPv4Network("192.0.2.0/24"),), (IPv4Network("10.9.0.2/32"),))
"""Everybody of these tests is at an address that is certain to be outside; NEXT_VIP by its name."""


@pytest.mark.parametrize("new", STATES, ids=range(len(STATES)))
@pytest.mark.parametrize("old", STATES, ids=range(len(STATES)))
def test_change_leads_to_what_the_new_state_says_of_the_outside(old: Mesh, new: Mesh) -> None:
    assert Kept(extent=SMALL).after(old, new) == Kept(extent=SMALL).after(new)


def test_addresses_of_the_mesh_state_are_not_outside() -> None:
    absent = A.in_phase(Phase.ABSENT)
    for state, address in ((mesh(A), A.addresses[0]), (mesh(absent), A.addresses[0]), (with_service(VIP, absent), VIP)):
        kept = Kept(extent=SMALL)
        assert inside_entries([address], SMALL).items() <= kept.after(state).items()
        assert not kept.keeper.is_outside(state, address)
        assert kept.keeper.is_outside(mesh(), address)


@pytest.mark.parametrize("address", [VIP, LB, OF_NODE])
def test_addresses_where_services_are_dialled_are_not_outside(address: IPv4Address) -> None:
    kept = Kept(extent=SMALL)
    assert SMALL.is_outside(address)
    state = with_fronts(leading=A.in_phase(Phase.ABSENT))
    assert inside_entries([address], SMALL).items() <= kept.after(state).items()
    assert not kept.keeper.is_outside(state, address)


def test_an_address_that_is_named_is_outside_until_somebody_is_enrolled_there() -> None:
    kept = Kept(extent=SMALL)
    assert inside_entries([NEXT_VIP], SMALL) == {}
    assert kept.keeper.is_outside(with_service(NEXT_VIP, A.in_phase(Phase.ABSENT)), NEXT_VIP)
    assert not kept.keeper.is_outside(with_service(NEXT_VIP, A), NEXT_VIP)


def test_rules_get_what_comes_in_to_this_nodes_workloads(kept: Kept) -> None:
    kept.capture.has_rules = True
    kept.keeper.local = frozenset({GATEWAY})
    permissive, strict = workload("a", None, exclude=EXCLUDE), workload("b", None, mode=Mode.STRICT)
    trusted = TRUSTED.trusted
    wanted = {
        "default/a": Excluded(EXCLUDE.inbound.ports, (*trusted, IPv4Network("10.0.1.1/32"))),
        "default/b": Excluded((), trusted),
    }
    kept.after(mesh(permissive, strict, away("c", Phase.ENROLLED)))
    assert kept.rules == [wanted]
    kept.after(mesh(permissive, strict, away("c", Phase.ABSENT)))
    assert kept.rules == [wanted], "nothing of this node has changed"
    kept.after(mesh(replace(permissive, mode=Mode.STRICT), strict))
    assert kept.rules[1:] == [{**wanted, "default/a": Excluded(EXCLUDE.inbound.ports, trusted)}]


@pytest.fixture
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bypass_keeper, "_RETRY_S", 0.001)


@pytest.mark.usefixtures("quick_retry")
def test_failure_is_tried_again(kept: Kept) -> None:
    async def story() -> None:
        await kept.keeper.take(mesh(A))
        kept.map.error = CaptureError("no memory")
        await kept.keeper.take(mesh(A, B))
        kept.map.error = None
        await until(lambda: kept.map.entries.items() >= peer(B).items(), "it is tried again")

    asyncio.run(story())
    assert kept.keeper.excluded(B.key) == EXCLUDE
    assert kept.keeper.excluded(WorkloadName("default", "unknown")) == NO_EXCLUSIONS
