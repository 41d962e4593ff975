"""What a cluster is made of: names, addresses and places. Pure, but for save() and load()."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from cluster.errors import ClusterError, NoClusterError

ROOT = Path("/var/lib/nodeseal-cluster")
"""Where clusters have their files: on a disk, since containerd's layers cannot lie on an overlay."""

API_PORT = 6443
SERVICES = IPv4Network("10.96.0.0/16")
PODS = IPv4Network("10.244.0.0/16")
NODES = IPv4Network("10.88.0.0/24")
API_ADDRESS = NODES[1]
SERVICES6 = IPv6Network("fd96::/108")
PODS6 = IPv6Network("fd44::/56")
NODES6 = IPv6Network("fd88::/64")
DOMAIN = "cluster.local"
MOST_NODES = 9

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?")


class ProxyMode(StrEnum):
    """How kube-proxy translates services."""

    IPTABLES = "iptables"
    NFTABLES = "nftables"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node. `netns`: its network namespace under /run/netns; `pods`: the range of its pods' addresses. Each of
    IPv4, and of IPv6 where the cluster has both."""

    name: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    pods: tuple[IPv4Network | IPv6Network, ...]
    netns: str
    directory: Path
    cgroup: str

    @property
    def address(self) -> str:
        """The IPv4 one."""
        return str(self.addresses[0])

    @property
    def root(self) -> Path:
        """Its root file system, seen from the host. What is mounted in it only the node sees."""
        return self.directory / "root"

    @property
    def orders(self) -> Path:
        """The socket of its first process."""
        return self.directory / "orders.sock"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """The whole. `binds`: directories of the host that every node sees, read-only, at the same path."""

    name: str
    count: int = 2
    proxy: ProxyMode = ProxyMode.IPTABLES
    dual_stack: bool = False
    binds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ClusterError."""
        if not _NAME.fullmatch(self.name):
            raise ClusterError(f"'{self.name}' cannot be a cluster's name: use up to 22 of a-z, 0-9 and -")
        if not 1 <= self.count <= MOST_NODES:
            raise ClusterError(f"{self.count} nodes: a cluster has 1 to {MOST_NODES}")

    @property
    def directory(self) -> Path:
        return ROOT / self.name

    @property
    def api_netns(self) -> str:
        """The network namespace of the control plane, where kubectl runs too."""
        return f"{netns_prefix(self.name)}api"

    @property
    def cgroup(self) -> str:
        return cgroup_of(self.name)

    @property
    def pod_ranges(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Of all nodes."""
        return (PODS, PODS6) if self.dual_stack else (PODS,)

    @property
    def service_ranges(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return (SERVICES, SERVICES6) if self.dual_stack else (SERVICES,)

    @property
    def nodes(self) -> list[NodePlan]:
        families = 2 if self.dual_stack else 1
        pods = list(zip(PODS.subnets(new_prefix=24), PODS6.subnets(new_prefix=64), strict=True))
        return [
            NodePlan(
                name=f"node{number}",
                addresses=(NODES[10 + number], NODES6[10 + number])[:families],
                pods=pods[number][:families],
                netns=f"{netns_prefix(self.name)}node{number}",
                directory=self.directory / f"node{number}",
                cgroup=f"{self.cgroup}/node{number}",
            )
            for number in range(1, self.count + 1)
        ]

    def save(self) -> None:
        """For later commands."""
        value = {"name": self.name, "count": self.count, "proxy": self.proxy}
        value |= {"dual_stack": self.dual_stack, "binds": list(self.binds)}
        (self.directory / "plan.json").write_text(json.dumps(value) + "\n")

    @classmethod
    def load(cls, name: str) -> ClusterPlan:
        """That of a cluster which is up. Raises NoClusterError."""
        try:
            value = json.loads((ROOT / name / "plan.json").read_text())
        except FileNotFoundError:
            raise NoClusterError(name) from None
        mode, binds = ProxyMode(value["proxy"]), tuple(value["binds"])
        return cls(value["name"], value["count"], mode, value["dual_stack"], binds)


def netns_prefix(name: str) -> str:
    """What the names of a cluster's network namespaces begin with."""
    return f"nscluster-{name}-"


def cgroup_of(name: str) -> str:
    """The cgroup that those of the nodes are below, in every hierarchy."""
    return f"/nodeseal-cluster-{name}"
