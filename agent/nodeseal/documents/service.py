"""Services as they are written in the files of a mesh state."""

from collections.abc import Iterable, Iterator
from sys import intern

from nodeseal.documents.document import Node, Problem, Problems, shown
from nodeseal.documents.entries import ServiceEntry
from nodeseal.documents.reader import Placed, Reader, Stated
from nodeseal.documents.schema import Fields
from nodeseal.documents.workload import DEFAULT, read_workload_name
from nodeseal.mesh.address import MESH_PORTS
from nodeseal.mesh.service import Service, ServicePort
from nodeseal.mesh.workload import WORKLOADS, WorkloadName


def read_service(problems: Problems, node: Node, path: str) -> Service | None:
    """None after noting a problem."""
    before = problems.count
    fields = Fields(problems, node, path)
    key = WorkloadName(intern(fields.name("namespace", DEFAULT)), fields.name("name"))
    service = Service(
        key=key,
        addresses=fields.addresses(),
        ports=_read_ports(problems, fields),
        endpoints=_read_endpoints(problems, fields, key.namespace),
    )
    fields.close()
    return service if problems.count == before else None


def _read_ports(problems: Problems, service: Fields) -> tuple[ServicePort, ...]:
    ports: dict[int, ServicePort] = {}
    nodes = service.items("ports", "a list of ports", required=True)
    for index, node in enumerate(nodes):
        fields = Fields(problems, node, f"{service.at('ports')}[{index}]")
        port = fields.port("port")
        target = fields.port("target_port", port)
        fields.close()
        if target in MESH_PORTS:
            expected = "a port that is not the mesh's own (15001, 15006, 15008)"
            problems.add(fields.line_of("target_port"), fields.at("target_port"), expected, str(target))
        if port in ports:
            problems.add(fields.line_of("port"), fields.at("port"), "each port once", f"{port} again")
        ports[port] = ServicePort(port, target)
    return tuple(ports.values())


def _read_endpoints(problems: Problems, service: Fields, namespace: str) -> tuple[WorkloadName, ...]:
    endpoints: dict[WorkloadName, None] = {}
    for index, node in enumerate(service.items("endpoints", "a list of workload names", required=True)):
        field_name = f"{service.at('endpoints')}[{index}]"
        name = read_workload_name(problems, node, field_name, namespace)
        if name in endpoints:
            problems.add(node.line, field_name, "each endpoint once", f"{name} again")
        if name is not None:
            endpoints[name] = None
    return tuple(endpoints)


def _check_endpoints(stated: Stated, lists: Iterable[Placed[Service]]) -> Iterator[Problem]:
    """Endpoints that are no workloads."""
    workloads = stated.keys[WORKLOADS.name]
    for placed in lists:
        for index, service in placed.valid():
            for position, endpoint in enumerate(service.endpoints):
                if endpoint not in workloads:
                    found = f"{shown(str(endpoint))}, which is none"
                    yield placed.problem(index, f"endpoints[{position}]", "the name of a workload", found)


SERVICE_READER: Reader[Service, ServiceEntry] = Reader(ServiceEntry, read_service, check=_check_endpoints)
