"""Services: one kind of objects of the mesh model.

There are two ways to say where one leads. A mesh state in files names workloads: `addresses`, `ports` and `endpoints`,
and each endpoint is found at whatever address its workload has. In Kubernetes endpoints are addresses, each with a port
of its own, which may be those of no workload at all, and a service is dialled in several ways that may lead to
different ones: `fronts`. A service has one of the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from nodeseal.mesh.address import Address, ApplicationAddress
from nodeseal.mesh.claims import ClaimIndex
from nodeseal.mesh.exclusions import Network
from nodeseal.mesh.kinds import Index, Kind
from nodeseal.mesh.workload import WorkloadName


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service's virtual address and the port its endpoints listen on, both 1 to 65535."""

    port: int
    target_port: int


class Way(StrEnum):
    """By what kind of address a service is dialled. Of two services at one address and port the earlier way counts."""

    CLUSTER = "cluster"
    """One that is the service's alone, with all of its ports."""
    LOAD_BALANCER = "load-balancer"
    """One that a load balancer takes connections at. Services may share it, with different ports."""
    EXTERNAL = "external"
    """Any other that is led to it. Services may share it, with different ports."""
    NODE = "node"
    """Any address of any node (nodeseal.mesh.node)."""


@dataclass(frozen=True, slots=True)
class NodeEndpoints:
    """The endpoints on one node."""

    node: str
    endpoints: tuple[ApplicationAddress, ...]


@dataclass(frozen=True, slots=True)
class Front:
    """Where a port of a service is dialled, in one way and by one family, and where that leads."""

    way: Way
    version: int
    """4 or 6: the family of all its addresses."""
    addresses: tuple[Address, ...]
    """Where it is dialled; none by the way NODE."""
    port: int
    """At which it is dialled."""
    service_port: int
    """The port of the service that it is: another one than `port` by the way NODE. Clients with an affinity keep their
    endpoint in whichever way they dial it."""
    endpoints: tuple[ApplicationAddress, ...]
    """All that a connection may go to, each once, in the order of ports and addresses."""
    silent: bool = False
    """If there is no endpoint, nobody answers; otherwise the connection is refused."""
    sources: tuple[Network, ...] = ()
    """Only clients of these are answered; (): all."""
    by_node: tuple[NodeEndpoints, ...] | None = None
    """The way NODE: at the address of another node than the client's it leads to the endpoints there alone, and if
    there is none nobody answers. None: to `endpoints`, as at any."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """A client that has connected keeps its endpoint, as long as it is one."""

    seconds: int
    """For so long after its last connection; at least 1."""


@dataclass(frozen=True, slots=True)
class Service:
    """Virtual addresses that stand for any of its endpoints."""

    key: WorkloadName
    addresses: tuple[Address, ...]
    """One, or one of each family; none if there are `fronts`. Its alone, with every port."""
    ports: tuple[ServicePort, ...]
    endpoints: tuple[WorkloadName, ...]
    fronts: tuple[Front, ...] = ()
    affinity: Affinity | None = None
    """Of clients that dial its fronts."""

    def target_port(self, port: int) -> int | None:
        """The endpoints' port behind `port` of the virtual address; None if the service has no such port."""
        for pair in self.ports:
            if pair.port == port:
                return pair.target_port
        return None

    def fronts_at(self, place: "Place") -> Iterator[Front]:
        """Those that are dialled there."""
        address, port = place
        for front in self.fronts:
            if front.port != port:
                continue
            if front.version == address if front.way is Way.NODE else address in front.addresses:
                yield front


Place = tuple[Address | int, int]
"""(address, port) where a front is dialled. For an address: 4 or 6, any address of a node of this family. For a port:
ALONE or SHARED."""
ALONE, SHARED = 0, -1
"""Stand for every port of an address that is a service's alone, and for those of one that several may share."""


def _places_of(front: Front) -> tuple[Place, ...]:
    if front.way is Way.NODE:
        return ((front.version, front.port),)
    return tuple((address, front.port) for address in front.addresses)


def _places(service: Service) -> tuple[Place, ...]:
    places: dict[Place, None] = {}
    for front in service.fronts:
        places.update(dict.fromkeys(_places_of(front)))
        whole = ALONE if front.way is Way.CLUSTER else SHARED
        places.update(((address, whole), None) for address in front.addresses)
    return tuple(places)


SERVICE_BY_ADDRESS: Index[Address, Service] = Index("service_by_address", "address", lambda service: service.addresses)
FRONTS: ClaimIndex[Place, Service] = ClaimIndex("fronts", "front", _places)
"""Services by where their fronts are dialled. Who may write a Service in Kubernetes may claim any address in it, so
that no claim may make a mesh impossible."""

SERVICES: Kind[WorkloadName, Service] = Kind("services", "service", WorkloadName.parse, (SERVICE_BY_ADDRESS, FRONTS))
