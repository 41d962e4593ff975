"""What a cluster is made of: names, addresses and places. Pure, but for save() and load()."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cluster.errors import ClusterError, NoClusterError

ROOT = Path("/var/lib/nodeseal-cluster")
"""Where clusters have their files: on a disk, since containerd's layers cannot lie on an overlay."""

API_PORT = 6443
SERVICES = IPv4Network("10.96.0.0/16")
PODS = IPv4Network("10.244.0.0/16")
NODES = IPv4Network("10.88.0.0/24")
API_ADDRESS = NODES[1]
DOMAIN = "cluster.local"
MOST_NODES = 9

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?")


class ProxyMode(StrEnum):
    """How kube-proxy translates services."""

    IPTABLES = "iptables"
    NFTABLES = "nftables"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node. `netns`: its network namespace under /run/netns; `pods`: the range of its pods' addresses."""

    name: str
    address: IPv4Address
    pods: IPv4Network
    netns: str
    directory: Path
    cgroup: str

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
    def nodes(self) -> list[NodePlan]:
        return [
            NodePlan(
                name=f"node{number}",
                address=NODES[10 + number],
                pods=list(PODS.subnets(new_prefix=24))[number],
                netns=f"{netns_prefix(self.name)}node{number}",
                directory=self.directory / f"node{number}",
                cgroup=f"{self.cgroup}/node{number}",
            )
            for number in range(1, self.count + 1)
        ]

    def save(self) -> None:
        """For later commands."""
        value = {"name": self.name, "count": self.count, "proxy": self.proxy, "binds": list(self.binds)}
        (self.directory / "plan.json").write_text(json.dumps(value) + "\n")

    @classmethod
    def load(cls, name: str) -> ClusterPlan:
        """That of a cluster which is up. Raises NoClusterError."""
        try:
            value = json.loads((ROOT / name / "plan.json").read_text())
        except FileNotFoundError:
            raise NoClusterError(name) from None
        return cls(value["name"], value["count"], ProxyMode(value["proxy"]), tuple(value["binds"]))


def netns_prefix(name: str) -> str:
    """What the names of a cluster's network namespaces begin with."""
    return f"nscluster-{name}-"


def cgroup_of(name: str) -> str:
    """The cgroup that those of the nodes are below, in every hierarchy."""
    return f"/nodeseal-cluster-{name}"
