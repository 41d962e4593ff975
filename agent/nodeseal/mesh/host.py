"""Workloads that have no network namespace of their own: processes of the node, told apart by their cgroup.

Several of them share the node's address. What one dials is known by the cgroup of the process, what is dialled by the
port; see docs/host-workloads.md.
"""

from dataclasses import dataclass

from nodeseal.mesh.exclusions import PortRange

OWN_NAMESPACE = "/proc/self/ns/net"
"""The namespace of such a workload as its agent sees it, which lives in the same."""


@dataclass(frozen=True, slots=True)
class HostPlace:
    """Where such a workload is found on its node."""

    cgroup: str
    """Its path in the cgroup v2 tree, "/system.slice/vector.service"; cgroups below it belong to it. Used by its own
    node only."""
    ports: tuple[PortRange, ...] = ()
    """Those that it is reached at; no two workloads of an address have one in common."""

    def has(self, port: int) -> bool:
        """Whether it is reached at this port."""
        return any(item.first <= port <= item.last for item in self.ports)

    def common_port(self, other: "HostPlace") -> int | None:
        """A port that both have; None if there is none."""
        for mine in self.ports:
            for theirs in other.ports:
                if mine.first <= theirs.last and theirs.first <= mine.last:
                    return max(mine.first, theirs.first)
        return None
