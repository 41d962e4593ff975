"""The field `host` of a workload: a process of the node, in place of a network namespace.

host: {cgroup: /system.slice/vector.service, ports: [9000, "9100-9110"]}
"""

from nodeseal.documents.exclude import read_items, read_ports
from nodeseal.documents.schema import Fields
from nodeseal.mesh.address import MESH_PORTS
from nodeseal.mesh.host import HostPlace

_EXPECTED = "a path from the root of the cgroup v2 tree, such as /system.slice/vector.service"
# Not the root itself: that would be every process of the machine.
_CGROUP = r"(?!.*/\.\.?(?:/|$))(?:/[\x21-\x2e\x30-\x7e]{1,255}){1,32}"


def read_host(workload: Fields) -> HostPlace | None:
    """The field `host` of a workload; None if it is absent, or after noting a problem."""
    node = workload.node("host", "a mapping with 'cgroup' and 'ports'", required=False)
    if node is None:
        return None
    problems, before = workload.problems, workload.problems.count
    for other, why in (("netns", "the node's own namespace"), ("exclude", "nothing excluded")):
        if workload.has(other):
            problems.add(
                workload.line_of(other), workload.at(other), f"{why}, as 'host' is given", f"'{other}' as well"
            )
    fields = Fields(problems, node, workload.at("host"))
    cgroup = fields.text("cgroup", expected=_EXPECTED, pattern=_CGROUP)
    ports = read_items(fields, "ports", "a list of ports", read_ports)
    mesh_ports = [port for port in sorted(MESH_PORTS) for item in ports if item.first <= port <= item.last]
    if mesh_ports:
        expected = "ports that are not the mesh's own (15001, 15006, 15008)"
        problems.add(fields.line_of("ports"), fields.at("ports"), expected, str(mesh_ports[0]))
    fields.close()
    return HostPlace(cgroup, ports) if problems.count == before else None
