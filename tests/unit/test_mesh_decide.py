"""Decisions other than those about phases, which test_mesh_transitions.py tries as a whole."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from nodeseal.mesh.address import ApplicationAddress, OriginalDestination, TunnelAddress
from nodeseal.mesh.decide import (
    Allow,
    Deny,
    Plaintext,
    Refuse,
    Route,
    Tunnel,
    Unavailable,
    inbound_plaintext,
    inbound_tunnel,
    outbound,
)
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.model import Mesh, MeshDifference, Mode, Phase, Service, ServicePort, Workload, WorkloadName
from nodeseal.mesh.reasons import WhyNotEnrolled, WhyPlaintext, WhyRefused
from nodeseal.mesh.spiffe import SpiffeId

A, B, C = (WorkloadName("default", name) for name in "abc")
ADDRESS_A, ADDRESS_B, ADDRESS_C = (IPv4Address(f"10.0.0.{last}") for last in (1, 2, 3))
VIP = IPv4Address("10.9.0.1")
STRANGER = IPv4Address("192.0.2.7")
IDENTITY_A = SpiffeId("example.org", "default", "a")
IDENTITY_B = SpiffeId("example.org", "default", "b")


def workload(key: WorkloadName, address: IPv4Address, phase: Phase) -> Workload:
    return Workload(key, key.name, f"node-{key.name}", (address,), None, True, Mode.PERMISSIVE, phase)


def mesh(*endpoints: WorkloadName, target_port: int = 8080) -> Mesh:
    """a and b are enrolled, c is not; the service's port is 80."""
    return Mesh.build(
        "example.org",
        [
            workload(A, ADDRESS_A, Phase.ENROLLED),
            workload(B, ADDRESS_B, Phase.ENROLLED),
            workload(C, ADDRESS_C, Phase.ABSENT),
        ],
        [Service(WorkloadName("default", "web"), (VIP,), (ServicePort(80, target_port),), endpoints)],
    )


def out(model: Mesh, address: IPv4Address | IPv6Address, port: int, *, established: bool = False) -> Route | Refuse:
    return outbound(model, A, OriginalDestination(address, port), established=established)


def test_outbound_to_an_enrolled_workload_is_a_tunnel_to_its_identity() -> None:
    assert out(mesh(), ADDRESS_B, 8080) == Route((Tunnel(ApplicationAddress(ADDRESS_B, 8080), IDENTITY_B),))


def test_outbound_to_a_workload_that_is_not_enrolled_is_plaintext() -> None:
    expected = Plaintext(ApplicationAddress(ADDRESS_C, 8080), WhyPlaintext.DESTINATION_NOT_ENROLLED)
    assert out(mesh(), ADDRESS_C, 8080) == Route((expected,))


def test_outbound_to_an_unknown_address_is_plaintext_to_that_address() -> None:
    expected = Plaintext(ApplicationAddress(STRANGER, 443), WhyPlaintext.DESTINATION_NOT_IN_MESH)
    assert out(mesh(), STRANGER, 443) == Route((expected,))


def test_outbound_to_a_service_offers_every_endpoint_in_its_own_way() -> None:
    assert out(mesh(B, C), VIP, 80) == Route(
        (
            Tunnel(ApplicationAddress(ADDRESS_B, 8080), IDENTITY_B),
            Plaintext(ApplicationAddress(ADDRESS_C, 8080), WhyPlaintext.DESTINATION_NOT_ENROLLED),
        )
    )


def test_outbound_passes_over_endpoints_that_the_mesh_does_not_know() -> None:
    route = out(mesh(WorkloadName("default", "gone"), C), VIP, 80)
    assert isinstance(route, Route)
    assert [endpoint.address.address for endpoint in route.endpoints] == [ADDRESS_C]


ADDRESS_B6, VIP_6 = IPv6Address("fd00::2"), IPv6Address("fd00:9::1")


def dual() -> Mesh:
    """As mesh(B, C), but b and the service have IPv6 addresses as well, and a's is its second."""
    model = mesh(B, C)
    return Mesh.build(
        "example.org",
        [
            replace(model.workloads[A], addresses=(IPv6Address("fd00::1"), ADDRESS_A)),
            replace(model.workloads[B], addresses=(ADDRESS_B, ADDRESS_B6)),
            model.workloads[C],
        ],
        [replace(service, addresses=(VIP, VIP_6)) for service in model.services.values()],
    )


@pytest.mark.parametrize("address", [ADDRESS_B, ADDRESS_B6])
def test_outbound_goes_to_the_address_that_was_dialled(address: IPv4Address | IPv6Address) -> None:
    assert out(dual(), address, 8080) == Route((Tunnel(ApplicationAddress(address, 8080), IDENTITY_B),))


@pytest.mark.parametrize(("vip", "address"), [(VIP, ADDRESS_B), (VIP_6, ADDRESS_B6)])
def test_a_services_endpoint_is_reached_by_the_family_that_was_dialled_if_it_has_it(
    vip: IPv4Address | IPv6Address, address: IPv4Address | IPv6Address
) -> None:
    route = out(dual(), vip, 80)
    assert isinstance(route, Route)
    assert [endpoint.address.address for endpoint in route.endpoints] == [address, ADDRESS_C]


@pytest.mark.parametrize("address", [ADDRESS_B, ADDRESS_B6])
def test_a_tunnel_may_come_to_any_of_the_addresses(address: IPv4Address | IPv6Address) -> None:
    answer = inbound_tunnel(dual(), B, IDENTITY_A, IPv6Address("fd00::1"), TunnelAddress(address, 8080))
    assert answer == Allow(None)


def test_plaintext_from_any_address_of_an_enrolled_workload_is_denied() -> None:
    for source in (ADDRESS_A, IPv6Address("fd00::1")):
        answer = inbound_plaintext(dual(), B, source, 8080, established=False)
        assert isinstance(answer, Deny)


def test_outbound_to_a_service_without_endpoints_is_unavailable() -> None:
    assert out(mesh(), VIP, 80) == Unavailable(WhyRefused.NO_ENDPOINT)


def test_outbound_to_a_port_that_the_service_has_not_is_unavailable() -> None:
    assert out(mesh(B), VIP, 81) == Unavailable(WhyRefused.NO_SUCH_PORT)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize("address", [ADDRESS_B, ADDRESS_C])
def test_outbound_to_the_meshs_own_ports_is_refused(address: IPv4Address, port: int) -> None:
    assert out(mesh(), address, port) == Refuse(WhyRefused.MESH_PORT)


def test_outbound_to_a_service_that_leads_to_a_mesh_port_is_refused() -> None:
    assert out(mesh(B, target_port=15008), VIP, 80) == Refuse(WhyRefused.MESH_PORT)


def test_outbound_to_port_15008_outside_the_mesh_is_left_alone() -> None:
    assert isinstance(out(mesh(), STRANGER, 15008), Route)


def test_outbound_of_an_unknown_workload_is_unavailable() -> None:
    route = outbound(mesh(), WorkloadName("default", "x"), OriginalDestination(ADDRESS_B, 80), established=False)
    assert route == Unavailable(WhyRefused.UNKNOWN_WORKLOAD)


@pytest.mark.parametrize("source", [A, WorkloadName("default", "unknown")])
@pytest.mark.parametrize(
    ("address", "port"), [(ADDRESS_B, 80), (ADDRESS_B, 15008), (ADDRESS_C, 80), (VIP, 80), (VIP, 81), (STRANGER, 80)]
)
@pytest.mark.parametrize("endpoints", [(), (B,), (B, C)])
def test_established_plaintext_is_never_refused_nor_moved_into_a_tunnel(
    source: WorkloadName, address: IPv4Address, port: int, endpoints: tuple[WorkloadName, ...]
) -> None:
    route = outbound(mesh(*endpoints), source, OriginalDestination(address, port), established=True)
    assert isinstance(route, Route)
    assert route.endpoints
    assert all(isinstance(endpoint, Plaintext) for endpoint in route.endpoints)


def tunnel(
    *,
    key: WorkloadName = B,
    peer: SpiffeId = IDENTITY_A,
    source: IPv4Address = ADDRESS_A,
    address: IPv4Address = ADDRESS_B,
    port: int = 8080,
) -> Allow | Deny | Unavailable:
    return inbound_tunnel(mesh(), key, peer, source, TunnelAddress(address, port))


def test_a_tunnel_from_a_workload_with_its_own_identity_is_allowed() -> None:
    assert tunnel() == Allow(None)


def test_a_tunnel_of_another_trust_domain_is_denied() -> None:
    answer = tunnel(peer=SpiffeId("example.com", "default", "a"))
    assert isinstance(answer, Deny)
    assert answer.why is WhyRefused.WRONG_TRUST_DOMAIN


def test_a_tunnel_with_a_borrowed_identity_is_denied() -> None:
    answer = tunnel(peer=IDENTITY_B)
    assert isinstance(answer, Deny)
    assert answer.why is WhyRefused.IDENTITY_MISMATCH


def test_a_tunnel_from_an_address_outside_the_mesh_is_judged_by_its_trust_domain() -> None:
    assert tunnel(source=STRANGER, peer=SpiffeId("example.org", "istio-system", "gateway")) == Allow(None)


def test_a_tunnel_to_another_address_is_unavailable() -> None:
    assert tunnel(address=ADDRESS_C) == Unavailable(WhyRefused.WRONG_ADDRESS)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_a_tunnel_to_the_meshs_own_ports_is_unavailable(port: int) -> None:
    assert tunnel(port=port) == Unavailable(WhyRefused.MESH_PORT)


def test_a_tunnel_to_an_unknown_workload_is_unavailable() -> None:
    assert tunnel(key=WorkloadName("default", "x")) == Unavailable(WhyRefused.UNKNOWN_WORKLOAD)


def test_plaintext_from_outside_the_mesh_is_allowed_with_its_reason() -> None:
    assert inbound_plaintext(mesh(), B, STRANGER, 80, established=False) == Allow(WhyPlaintext.SOURCE_NOT_IN_MESH)


def test_plaintext_from_a_workload_that_is_not_enrolled_is_allowed_with_its_reason() -> None:
    assert inbound_plaintext(mesh(), B, ADDRESS_C, 80, established=False) == Allow(WhyPlaintext.SOURCE_NOT_ENROLLED)


def test_plaintext_to_an_unknown_workload_is_unavailable() -> None:
    answer = inbound_plaintext(mesh(), WorkloadName("default", "x"), STRANGER, 80, established=False)
    assert answer == Unavailable(WhyRefused.UNKNOWN_WORKLOAD)


def excluding(
    *,
    inbound: Excluded = NO_EXCLUSIONS.inbound,
    outbound: Excluded = NO_EXCLUSIONS.outbound,
    mode: Mode = Mode.STRICT,
    phase: Phase = Phase.ENROLLED,
) -> Mesh:
    """b is strict and excludes `inbound`; a excludes `outbound`."""
    b = replace(workload(B, ADDRESS_B, phase), mode=mode, exclude=Exclusions(inbound=inbound))
    a = replace(workload(A, ADDRESS_A, Phase.ENROLLED), exclude=Exclusions(outbound=outbound))
    return Mesh.build("example.org", [a, b])


PORT_80 = Excluded(ports=(PortRange(79, 81),))
FROM_STRANGERS = Excluded(networks=(IPv4Network("192.0.2.0/24"),))
EVERYTHING = Excluded(networks=(IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))


@pytest.mark.parametrize("phase", [Phase.JOINING, Phase.ENROLLED, Phase.LEAVING])
@pytest.mark.parametrize("established", [False, True])
@pytest.mark.parametrize(
    ("inbound", "why"), [(PORT_80, WhyPlaintext.EXCLUDED_PORT), (FROM_STRANGERS, WhyPlaintext.EXCLUDED_RANGE)]
)
def test_plaintext_that_a_strict_workload_excludes_is_allowed(
    inbound: Excluded, why: WhyPlaintext, established: bool, phase: Phase
) -> None:
    model = excluding(inbound=inbound, phase=phase)
    assert inbound_plaintext(model, B, STRANGER, 80, established=established) == Allow(why)


@pytest.mark.parametrize(
    "inbound", [Excluded(ports=(PortRange(81, 90),)), Excluded(networks=(IPv4Network("10.0.0.0/8"),))]
)
def test_plaintext_that_is_not_what_a_strict_workload_excludes_is_denied(inbound: Excluded) -> None:
    answer = inbound_plaintext(excluding(inbound=inbound), B, STRANGER, 80, established=False)
    assert isinstance(answer, Deny)
    assert answer.why is WhyRefused.STRICT


@pytest.mark.parametrize("mode", Mode)
def test_an_exclusion_of_one_side_lets_no_plaintext_through_between_enrolled_workloads(mode: Mode) -> None:
    for model in (excluding(inbound=EVERYTHING, mode=mode), excluding(outbound=EVERYTHING, mode=mode)):
        assert isinstance(inbound_plaintext(model, B, ADDRESS_A, 80, established=False), Deny)
        assert out(model, ADDRESS_B, 80) == Route((Tunnel(ApplicationAddress(ADDRESS_B, 80), IDENTITY_B),))


def test_an_exclusion_of_both_sides_allows_plaintext_between_enrolled_workloads() -> None:
    model = excluding(inbound=PORT_80, outbound=PORT_80)
    answer = inbound_plaintext(model, B, ADDRESS_A, 80, established=False)
    assert answer == Allow(WhyPlaintext.EXCLUDED_PORT)
    direct = Plaintext(ApplicationAddress(ADDRESS_B, 80), WhyPlaintext.EXCLUDED_PORT)
    assert out(model, ADDRESS_B, 80) == Route((direct,))


@pytest.mark.parametrize("established", [False, True])
def test_what_is_excluded_outbound_goes_where_it_was_dialled(established: bool) -> None:
    model = excluding(outbound=FROM_STRANGERS)
    direct = Plaintext(ApplicationAddress(STRANGER, 443), WhyPlaintext.EXCLUDED_RANGE)
    assert out(model, STRANGER, 443, established=established) == Route((direct,))


def test_an_exclusion_of_one_side_lets_no_plaintext_through_to_a_process_of_a_node() -> None:
    process = replace(workload(B, ADDRESS_B, Phase.ENROLLED), host=HostPlace("/b", (PortRange(80, 80),)))
    a = replace(workload(A, ADDRESS_A, Phase.ENROLLED), exclude=Exclusions(outbound=EVERYTHING))
    model = Mesh.build("example.org", [a, process])
    assert out(model, ADDRESS_B, 80) == Route((Tunnel(ApplicationAddress(ADDRESS_B, 80), IDENTITY_B, by_name=True),))
    other = Plaintext(ApplicationAddress(ADDRESS_B, 81), WhyPlaintext.EXCLUDED_RANGE)
    assert out(model, ADDRESS_B, 81) == Route((other,))


def test_the_meshs_own_ports_are_refused_whatever_is_excluded() -> None:
    model = excluding(inbound=EVERYTHING, outbound=EVERYTHING)
    assert out(model, ADDRESS_B, 15008) == Refuse(WhyRefused.MESH_PORT)


@pytest.mark.parametrize("endpoint", [B, C])
def test_an_exclusion_counts_for_a_service_only_while_it_leads_to_nobody_enrolled(endpoint: WorkloadName) -> None:
    model = mesh(endpoint)
    a = replace(model.workloads[A], exclude=Exclusions(outbound=EVERYTHING))
    model = model.apply(MeshDifference("example.org", {"workloads": (a,)}))
    route = out(model, VIP, 80)
    assert isinstance(route, Route)
    (found,) = route.endpoints
    assert isinstance(found, Tunnel) is (endpoint == B)
    if endpoint == C:
        assert found == Plaintext(ApplicationAddress(VIP, 80), WhyPlaintext.EXCLUDED_RANGE)


def test_plaintext_to_the_hbone_port_is_denied_whatever_is_excluded() -> None:
    answer = inbound_plaintext(excluding(inbound=EVERYTHING), B, STRANGER, 15008, established=False)
    assert isinstance(answer, Deny)


def test_plaintext_to_the_hbone_port_is_denied() -> None:
    answer = inbound_plaintext(mesh(), B, STRANGER, 15008, established=False)
    assert isinstance(answer, Deny)
    assert answer.why is WhyRefused.MESH_PORT


def test_reasons_fit_the_cores_buffer_and_are_words() -> None:
    for reason in (*WhyPlaintext, *WhyRefused, *WhyNotEnrolled):
        assert reason.isascii()
        assert 0 < len(reason) <= 95
        assert reason.replace("-", "").isalpha()
