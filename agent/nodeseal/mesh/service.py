"""Services: one kind of objects of the mesh model."""

from dataclasses import dataclass

from nodeseal.mesh.address import Address
from nodeseal.mesh.kinds import Index, Kind
from nodeseal.mesh.workload import WorkloadName


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service's virtual address and the port its endpoints listen on, both 1 to 65535."""

    port: int
    target_port: int


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual address, or one of each family, that stands for any of its endpoints."""

    key: WorkloadName
    addresses: tuple[Address, ...]
    ports: tuple[ServicePort, ...]
    endpoints: tuple[WorkloadName, ...]

    def target_port(self, port: int) -> int | None:
        """The endpoints' port behind `port` of the virtual address; None if the service has no such port."""
        for pair in self.ports:
            if pair.port == port:
                return pair.target_port
        return None


SERVICE_BY_ADDRESS: Index[Address, Service] = Index("service_by_address", "address", lambda service: service.addresses)

SERVICES: Kind[WorkloadName, Service] = Kind("services", "service", WorkloadName.parse, (SERVICE_BY_ADDRESS,))
