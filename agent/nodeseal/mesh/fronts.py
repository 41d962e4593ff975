"""Which service a dialled address stands for, and which of its endpoints count for who dials it. Pure.

A workload's own address is never another's by what a service says of it, unless it is the service's alone: who may
write a Service in Kubernetes would lead others' connections elsewhere.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from nodeseal.mesh.address import MESH_PORTS, Address, ApplicationAddress
from nodeseal.mesh.model import Mesh, Service, Workload, WorkloadName
from nodeseal.mesh.reasons import WhyRefused
from nodeseal.mesh.service import ALONE, SHARED, Front, Place, Way


class Found(NamedTuple):
    """A front, and the service that it is one of."""

    service: Service
    front: Front


@dataclass(frozen=True, slots=True)
class Sticky:
    """What a client keeps an endpoint for: a port of a service, by one family."""

    service: WorkloadName
    port: int
    version: int
    seconds: int
    """For so long after its last connection."""


Choose: TypeAlias = Callable[[Sequence[ApplicationAddress], Sticky | None], Sequence[ApplicationAddress]]
"""choose(endpoints, sticky): those that one connection may go to, of at least one; of a client that keeps its endpoint
(`sticky`) one alone."""


def all_of(endpoints: Sequence[ApplicationAddress], _sticky: Sticky | None) -> Sequence[ApplicationAddress]:
    """Any of them."""
    return endpoints


def front_at(mesh: Mesh, address: Address, port: int) -> Found | WhyRefused | None:
    """What is dialled there; the reason if that leads nowhere; None if it is no service's."""
    fronts = mesh.fronts
    if fronts.claimants((address, ALONE)):
        return _one_of(mesh, (address, port), (Way.CLUSTER,)) or WhyRefused.NO_SUCH_PORT
    if mesh.claimants(address):
        return None
    found = _one_of(mesh, (address, port), (Way.LOAD_BALANCER, Way.EXTERNAL))
    if found is None and mesh.nodes.claimants(address):
        found = _one_of(mesh, (address.version, port), (Way.NODE,))
    return found


def _one_of(mesh: Mesh, place: Place, ways: Iterable[Way]) -> Found | WhyRefused | None:
    found = [Found(service, front) for service in mesh.fronts.claimants(place) for front in service.fronts_at(place)]
    for way in ways:
        if mine := [one for one in found if one.front.way is way]:
            # Of one service all lead to the same.
            return mine[0] if len({one.service.key for one in mine}) == 1 else WhyRefused.CONTESTED_ADDRESS
    return None


def endpoints_for(
    mesh: Mesh, front: Front, here: Workload | None, dialled: Address
) -> tuple[ApplicationAddress, ...] | WhyRefused:
    """Those that a connection of `here` to the front may go to, at least one; or why there is none."""
    if front.sources and here is not None and not _comes_from(here, front):
        return WhyRefused.OUTSIDE_SOURCE_RANGES
    endpoints, silent = front.endpoints, front.silent
    if front.by_node is not None and here is not None and endpoints:
        names = {node.key for node in mesh.nodes.claimants(dialled)}
        if here.node not in names:
            endpoints = tuple(one for group in front.by_node if group.node in names for one in group.endpoints)
            silent = True
    if not endpoints:
        return WhyRefused.NO_LOCAL_ENDPOINT if silent else WhyRefused.NO_ENDPOINT
    if not mesh.contested and MESH_PORTS.isdisjoint(one.port for one in endpoints):
        return endpoints  # as nearly always, and there may be a thousand
    usable = tuple(one for one in endpoints if not _is_barred(mesh, one))
    if usable:
        return usable
    ports = any(one.port in MESH_PORTS for one in endpoints)
    return WhyRefused.MESH_PORT if ports else WhyRefused.CONTESTED_ADDRESS


def _comes_from(here: Workload, front: Front) -> bool:
    return any(
        address in network
        for address in here.addresses
        if address.version == front.version
        for network in front.sources
    )


def _is_barred(mesh: Mesh, endpoint: ApplicationAddress) -> bool:
    address = endpoint.address
    if endpoint.port in MESH_PORTS and (mesh.claimants(address) or address in mesh.hosts):
        return True
    return address in mesh.contested and any(one.accepts_tunnels for one in mesh.contested[address])


def services_at(mesh: Mesh, address: Address) -> tuple[Service, ...]:
    """Those that are dialled at the address, at some of their ports; node ports are at every node's. Of an address that
    is a workload's or a node's as well, those alone whose own it is."""
    own = mesh.service_by_address.get(address)
    found = ((own,) if own is not None else ()) + mesh.fronts.claimants((address, ALONE))
    if found or mesh.claimants(address) or address in mesh.hosts or mesh.nodes.claimants(address):
        return found
    return mesh.fronts.claimants((address, SHARED))


def workload_at(mesh: Mesh, endpoint: ApplicationAddress) -> Workload | None:
    """Whose endpoint it is; None: no workload's, or nobody can tell."""
    return mesh.by_address.get(endpoint.address) or mesh.host_at(endpoint.address, endpoint.port)


def leads_to_a_peer(mesh: Mesh, service: Service) -> bool:
    """Whether connections to the service may go to a workload that takes tunnels."""
    workloads = (mesh.workloads.get(name) for name in service.endpoints)
    if any(one is not None and one.accepts_tunnels for one in workloads):
        return True
    lists = {id(front.endpoints): front.endpoints for front in service.fronts}
    return any(
        (one := workload_at(mesh, endpoint)) is not None and one.accepts_tunnels
        for endpoints in lists.values()
        for endpoint in endpoints
    )
