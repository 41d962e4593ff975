"""Processes of a node as workloads: they share the node's address, and are told apart by port and identity."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from nodeseal.contracts.mesh import decode_difference, encode_difference
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
from nodeseal.mesh.exclusions import PortRange
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from nodeseal.mesh.model import (
    Mesh,
    MeshDifference,
    MeshError,
    Mode,
    Phase,
    Service,
    ServicePort,
    Workload,
    WorkloadName,
    difference,
)
from nodeseal.mesh.reasons import WhyPlaintext, WhyRefused
from nodeseal.mesh.spiffe import SpiffeId

NODE = IPv4Address("10.0.0.1")
POD_ADDRESS = IPv4Address("10.0.1.1")
VIP = IPv4Address("10.9.0.1")
VECTOR, POD = WorkloadName("default", "vector"), WorkloadName("default", "pod")


def name(text: str) -> WorkloadName:
    return WorkloadName("default", text)


def process(text: str, *ports: int, phase: Phase = Phase.ENROLLED, node: str = "node1", account: str = "") -> Workload:
    place = HostPlace(f"/system.slice/{text}.service", tuple(PortRange(port, port) for port in ports))
    return Workload(name(text), account or text, node, (NODE,), OWN_NAMESPACE, True, Mode.PERMISSIVE, phase, host=place)


def pod(phase: Phase = Phase.ENROLLED, mode: Mode = Mode.PERMISSIVE) -> Workload:
    return Workload(POD, "pod", "node2", (POD_ADDRESS,), "pod", True, mode, phase)


def identity(text: str) -> SpiffeId:
    return SpiffeId("example.org", "default", text)


def mesh(*workloads: Workload, services: tuple[Service, ...] = ()) -> Mesh:
    return Mesh.build("example.org", workloads or (process("vector", 9000), process("registry", 5000), pod()), services)


def dial(model: Mesh, port: int, address: IPv4Address = NODE) -> Route | Refuse | Unavailable:
    return outbound(model, POD, OriginalDestination(address, port), established=False)


# ---- the model


def test_processes_of_a_node_share_its_address() -> None:
    model = mesh()
    assert [workload.key for workload in model.hosts[NODE]] == [name("registry"), name("vector")]
    assert NODE not in model.by_address
    assert model.host_at(NODE, 9000) == process("vector", 9000)
    assert model.host_at(NODE, 22) is None


@pytest.mark.parametrize(
    ("workloads", "services", "message"),
    [
        ((process("a", 9000), process("b", 9000)), (), "share the port 9000 of 10.0.0.1"),
        ((process("a", 9000), process("b", 9001, node="node2")), (), "of different nodes share the address"),
        ((process("a", 9000), replace(pod(), addresses=(NODE,))), (), "share the address 10.0.0.1"),
        ((process("a", 9000),), (Service(name("s"), (NODE,), (), ()),), "share the address 10.0.0.1"),
    ],
)
def test_what_only_one_may_have_is_refused(
    workloads: tuple[Workload, ...], services: tuple[Service, ...], message: str
) -> None:
    with pytest.raises(MeshError, match=message):
        mesh(*workloads, services=services)
    with pytest.raises(MeshError, match=message):
        mesh(workloads[0]).apply(MeshDifference("example.org", {"workloads": workloads[1:], "services": services}))


def test_ranges_of_ports_may_not_overlap() -> None:
    one = replace(process("a"), host=HostPlace("/a", (PortRange(9000, 9010),)))
    with pytest.raises(MeshError, match="share the port 9005"):
        mesh(one, process("b", 9005))


def test_a_difference_leads_to_the_same_hosts() -> None:
    old = mesh(process("vector", 9000), pod())
    new = mesh(process("vector", 9001), process("registry", 9000), pod())
    result = old.apply(difference(old, new))
    assert (result, result.hosts, result.by_address) == (new, new.hosts, new.by_address)
    back = result.apply(difference(new, old))
    assert (back, back.hosts) == (old, old.hosts)


def test_phases_change_what_is_found_among_the_hosts() -> None:
    model = mesh().with_phases({VECTOR: Phase.LEAVING})
    found = model.host_at(NODE, 9000)
    assert found is not None
    assert found.phase is Phase.LEAVING
    assert model.workloads[VECTOR] == found


def test_processes_cross_the_wire() -> None:
    model = mesh()
    copy = Mesh.from_difference(decode_difference(encode_difference(model.as_difference())))
    assert (copy, copy.hosts) == (model, model.hosts)


# ---- outbound


def test_a_process_is_dialled_by_its_port_and_named_to_the_peer() -> None:
    expected = Tunnel(ApplicationAddress(NODE, 9000), identity("vector"), by_name=True)
    assert dial(mesh(), 9000) == Route((expected,))


def test_the_other_ports_of_a_node_are_not_in_the_mesh() -> None:
    expected = Plaintext(ApplicationAddress(NODE, 22), WhyPlaintext.DESTINATION_NOT_IN_MESH)
    assert dial(mesh(), 22) == Route((expected,))


def test_a_process_that_is_not_enrolled_is_dialled_in_plaintext() -> None:
    model = mesh(process("vector", 9000, phase=Phase.ABSENT), process("registry", 5000), pod())
    expected = Plaintext(ApplicationAddress(NODE, 9000), WhyPlaintext.DESTINATION_NOT_ENROLLED)
    assert dial(model, 9000) == Route((expected,))


def test_the_meshs_own_port_of_a_node_is_refused() -> None:
    assert dial(mesh(), 15008) == Refuse(WhyRefused.MESH_PORT)


def test_a_service_leads_to_a_process_at_its_own_port_only() -> None:
    ports = (ServicePort(80, 9000), ServicePort(81, 9001))
    model = mesh(process("vector", 9000), pod(), services=(Service(name("web"), (VIP,), ports, (VECTOR,)),))
    tunnel = Tunnel(ApplicationAddress(NODE, 9000), identity("vector"), by_name=True)
    assert dial(model, 80, VIP) == Route((tunnel,))
    plaintext = Plaintext(ApplicationAddress(NODE, 9001), WhyPlaintext.DESTINATION_NOT_IN_MESH)
    assert dial(model, 81, VIP) == Route((plaintext,))


# ---- tunnels


def tunnel(model: Mesh, here: WorkloadName, peer: str, source: IPv4Address, port: int) -> Allow | Deny | Unavailable:
    where = POD_ADDRESS if here == POD else NODE
    return inbound_tunnel(model, here, identity(peer), source, TunnelAddress(where, port))


def test_a_tunnel_reaches_a_process_at_its_own_ports_only() -> None:
    assert tunnel(mesh(), VECTOR, "pod", POD_ADDRESS, 9000) == Allow(None)
    assert tunnel(mesh(), VECTOR, "pod", POD_ADDRESS, 5000) == Unavailable(WhyRefused.NO_SUCH_PORT)
    assert tunnel(mesh(), VECTOR, "pod", POD_ADDRESS, 22) == Unavailable(WhyRefused.NO_SUCH_PORT)


def test_a_tunnel_may_reach_another_process_with_the_same_identity() -> None:
    model = mesh(process("vector", 9000, account="log"), process("registry", 5000, account="log"), pod())
    assert tunnel(model, VECTOR, "pod", POD_ADDRESS, 5000) == Allow(None)


@pytest.mark.parametrize(("peer", "allowed"), [("vector", True), ("registry", True), ("pod", False)])
def test_a_tunnel_from_a_node_is_of_one_of_its_processes(peer: str, allowed: bool) -> None:
    answer = tunnel(mesh(), POD, peer, NODE, 8080)
    assert (answer == Allow(None)) is allowed
    assert isinstance(answer, Allow) or answer.why is WhyRefused.IDENTITY_MISMATCH


# ---- plaintext


def plaintext(model: Mesh, source: IPv4Address, *, here: WorkloadName = POD) -> Allow | Deny | Unavailable:
    return inbound_plaintext(model, here, source, 8080, established=False)


def test_plaintext_from_a_node_with_enrolled_processes_may_be_anothers() -> None:
    assert plaintext(mesh(), NODE) == Allow(WhyPlaintext.SOURCE_SHARES_ADDRESS)


def test_plaintext_from_a_node_whose_processes_are_not_enrolled_is_a_strangers() -> None:
    model = mesh(process("vector", 9000, phase=Phase.ABSENT), pod())
    assert plaintext(model, NODE) == Allow(WhyPlaintext.SOURCE_NOT_IN_MESH)


def test_strict_refuses_plaintext_from_a_node_whoever_it_is() -> None:
    model = mesh(process("vector", 9000), pod(mode=Mode.STRICT))
    assert isinstance(plaintext(model, NODE), Deny)


def test_strict_takes_plaintext_from_a_node_while_the_workload_joins() -> None:
    model = mesh(process("vector", 9000), pod(Phase.JOINING, Mode.STRICT))
    assert plaintext(model, NODE) == Allow(WhyPlaintext.SOURCE_SHARES_ADDRESS)


def test_an_enrolled_pods_plaintext_to_an_enrolled_process_is_refused() -> None:
    answer = plaintext(mesh(), POD_ADDRESS, here=VECTOR)
    assert isinstance(answer, Deny)
    assert answer.why is WhyRefused.SOURCE_IS_ENROLLED
