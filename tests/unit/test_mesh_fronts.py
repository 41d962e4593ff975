"""Fronts of services in decisions: what the rows of Kubernetes' services do not reach."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from nodeseal.mesh.address import ApplicationAddress, OriginalDestination
from nodeseal.mesh.decide import Plaintext, Refuse, Route, Tunnel, Unavailable, excluded_outbound, outbound
from nodeseal.mesh.exclusions import Excluded, Exclusions, PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.model import Mesh, Mode, Phase, Service, Workload, WorkloadName
from nodeseal.mesh.node import Node
from nodeseal.mesh.reasons import WhyPlaintext, WhyRefused
from nodeseal.mesh.service import Affinity, Front, Way

A, B, C = (WorkloadName("default", name) for name in "abc")
ADDRESS_A, ADDRESS_B = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
VIP, NODE, OUTSIDE = IPv4Address("10.9.0.1"), IPv4Address("192.168.0.1"), IPv4Address("203.0.113.9")
WEB = WorkloadName("shop", "web")


def workload(key: WorkloadName, address: IPv4Address, phase: Phase = Phase.ENROLLED) -> Workload:
    return Workload(key, key.name, "node1", (address,), None, True, Mode.PERMISSIVE, phase)


def at(address: IPv4Address, port: int = 8080) -> ApplicationAddress:
    return ApplicationAddress(address, port)


def mesh(*endpoints: ApplicationAddress, more: tuple[Workload, ...] = (), way: Way = Way.CLUSTER) -> Mesh:
    """a and b, and a service at VIP:80."""
    addresses = () if way is Way.NODE else (VIP,)
    service = Service(WEB, (), (), (), (Front(way, 4, addresses, 80, 80, endpoints),), Affinity(60))
    workloads = {one.key: one for one in (workload(A, ADDRESS_A), workload(B, ADDRESS_B), *more)}
    return Mesh.build("example.org", workloads.values(), [service], nodes=(Node("node1", (NODE,)),))


def out(
    model: Mesh, address: IPv4Address = VIP, port: int = 80, *, established: bool = False
) -> Route | Refuse | Unavailable:
    return outbound(model, A, OriginalDestination(address, port), established=established)


def test_an_endpoint_at_a_port_of_the_mesh_is_none() -> None:
    found = out(mesh(at(ADDRESS_B, 15008), at(ADDRESS_B)))
    assert isinstance(found, Route)
    assert [one.address for one in found.endpoints] == [at(ADDRESS_B)]
    assert out(mesh(at(ADDRESS_B, 15008))) == Refuse(WhyRefused.MESH_PORT)
    outside = Plaintext(at(OUTSIDE, 15008), WhyPlaintext.DESTINATION_NOT_IN_MESH)
    assert out(mesh(at(OUTSIDE, 15008))) == Route((outside,))


def test_an_endpoint_that_two_claim_is_none_as_soon_as_one_of_them_is_enrolled() -> None:
    rival = workload(C, ADDRESS_B, Phase.ABSENT)
    assert out(mesh(at(ADDRESS_B), more=(rival,))) == Unavailable(WhyRefused.CONTESTED_ADDRESS)
    found = out(mesh(at(ADDRESS_B), at(OUTSIDE), more=(rival,)))
    assert isinstance(found, Route)
    assert [one.address for one in found.endpoints] == [at(OUTSIDE)]
    absent = out(mesh(at(ADDRESS_B), more=(rival, workload(B, ADDRESS_B, Phase.ABSENT))))
    assert absent == Route((Plaintext(at(ADDRESS_B), WhyPlaintext.DESTINATION_NOT_ENROLLED),))


def test_an_endpoint_may_be_a_process_of_a_node() -> None:
    process = replace(workload(C, NODE), host=HostPlace("/system.slice/c", (PortRange(9000, 9000),)))
    model = mesh(at(NODE, 9000), at(NODE, 9001), more=(process,))
    identity = process.identity("example.org")
    assert out(model) == Route(
        (
            Tunnel(at(NODE, 9000), identity, by_name=True),
            Plaintext(at(NODE, 9001), WhyPlaintext.DESTINATION_NOT_IN_MESH),
        )
    )


def test_a_process_of_a_node_is_reached_beside_node_ports() -> None:
    process = replace(workload(C, NODE), host=HostPlace("/system.slice/c", (PortRange(9000, 9000),)))
    model = mesh(at(ADDRESS_B), more=(process,), way=Way.NODE)
    assert out(model, NODE, 80) == Route((Tunnel(at(ADDRESS_B), model.workloads[B].identity("example.org")),))
    assert out(model, NODE, 9000) == Route((Tunnel(at(NODE, 9000), process.identity("example.org"), by_name=True),))


@pytest.mark.parametrize(
    ("model", "port"),
    [
        (mesh(at(ADDRESS_B)), 80),
        (mesh(at(ADDRESS_B)), 81),
        (mesh(), 80),
        (mesh(at(ADDRESS_B, 15008)), 80),
    ],
)
def test_what_runs_in_plaintext_goes_on(model: Mesh, port: int) -> None:
    found = out(model, VIP, port, established=True)
    assert isinstance(found, Route)
    assert all(isinstance(one, Plaintext) for one in found.endpoints)


def test_what_runs_in_plaintext_to_an_enrolled_endpoint_is_told_so() -> None:
    found = out(mesh(at(ADDRESS_B)), established=True)
    assert found == Route((Plaintext(at(ADDRESS_B), WhyPlaintext.OPENED_BEFORE_ENROLMENT),))


def test_a_service_that_leads_to_somebody_enrolled_is_not_excluded() -> None:
    everything = Exclusions(outbound=Excluded(networks=(IPv4Network("0.0.0.0/0"),)))
    here = replace(workload(A, ADDRESS_A), exclude=everything)

    def why(model: Mesh, address: IPv4Address) -> WhyPlaintext | None:
        return excluded_outbound(model, here, OriginalDestination(address, 80))

    assert why(mesh(at(ADDRESS_B)), VIP) is None
    absent = (workload(B, ADDRESS_B, Phase.ABSENT),)
    assert why(mesh(at(ADDRESS_B), more=absent), VIP) is WhyPlaintext.EXCLUDED_RANGE
    # The kernel, which asks first, knows addresses alone.
    assert why(mesh(at(ADDRESS_B), way=Way.NODE), NODE) is WhyPlaintext.EXCLUDED_RANGE
