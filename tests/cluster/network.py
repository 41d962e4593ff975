"""The network of a cluster: a bridge in the control plane's namespace, to which every node has a veth pair.

```
  node1 eth0 10.88.0.11 ---- node1 \\
                                    bridge "nodes" 10.88.0.1, in the control plane's namespace
  node2 eth0 10.88.0.12 ---- node2 /
```

Pod ranges are routed by hand. Everything is made inside the namespaces: the host's own sees no interface.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from cluster.plan import API_ADDRESS, NODES, NODES6, ClusterPlan, NodePlan, netns_prefix
from cluster.programs import run
from nodeseal_lab.namespaces import list_namespaces, remove_namespace, write_sysctls

BRIDGE = "nodes"
UPLINK = "eth0"
_OF_CLUSTER = re.compile(r"api|node[0-9]+")
# Nobody else is there: addresses count at once (no duplicate address detection).
_EARLY = {"ipv6/conf/default/accept_dad": "0", "ipv6/conf/default/accept_ra": "0"}
_FORWARD = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}


def make_control_plane(plan: ClusterPlan) -> None:
    """Its namespace and the bridge. Raises ClusterError, LabError."""
    run(["ip", "netns", "add", plan.api_netns])
    write_sysctls(plan.api_netns, _EARLY)
    # A MAC of its own: else the bridge has that of one of its ports, and another when that goes, for which the nodes
    # do not reach the API server until their neighbour entries have expired.
    _ip(plan.api_netns, "link", "add", BRIDGE, "address", "02:6e:73:00:00:01", "type", "bridge")
    _set_addresses(plan.api_netns, BRIDGE, _gateways(plan))
    for device in ("lo", BRIDGE):
        _ip(plan.api_netns, "link", "set", device, "up")
    for node in plan.nodes:
        _add_routes(plan.api_netns, node)
    write_sysctls(plan.api_netns, _FORWARD)


def make_node(plan: ClusterPlan, node: NodePlan) -> None:
    """A node's namespace, with its way to the others. Raises ClusterError, LabError."""
    run(["ip", "netns", "add", node.netns])
    write_sysctls(node.netns, _EARLY)
    _ip(node.netns, "link", "set", "lo", "up")
    _ip(node.netns, "link", "add", UPLINK, "type", "veth", "peer", "name", node.name, "netns", plan.api_netns)
    _ip(plan.api_netns, "link", "set", node.name, "master", BRIDGE, "up")
    _set_addresses(node.netns, UPLINK, node.addresses)
    _ip(node.netns, "link", "set", UPLINK, "up")
    for gateway in _gateways(plan):
        _ip(node.netns, f"-{gateway.version}", "route", "add", "default", "via", str(gateway))
    for other in plan.nodes:
        if other != node:
            _add_routes(node.netns, other)
    write_sysctls(node.netns, _FORWARD)


def remove_node(plan: ClusterPlan, node: NodePlan) -> None:
    """The veth pair at once, though the namespace lives on for as long as a process is in it. Raises LabError."""
    # Of a cluster that was half removed it may be gone.
    there = plan.api_netns in list_namespaces(plan.api_netns)
    if there and node.name in run(["ip", "-n", plan.api_netns, "-brief", "link", "show"]):
        _ip(plan.api_netns, "link", "delete", node.name)
    remove_namespace(node.netns)


def namespaces_of(cluster: str) -> list[str]:
    """The names of those that there are. A cluster whose name begins with this one's has others. Raises LabError."""
    prefix = netns_prefix(cluster)
    return [name for name in list_namespaces(prefix) if _OF_CLUSTER.fullmatch(name.removeprefix(prefix))]


def remove_all(cluster: str) -> None:
    """Every namespace of a cluster, by its name. Raises LabError."""
    for name in namespaces_of(cluster):
        remove_namespace(name)


def _gateways(plan: ClusterPlan) -> tuple[IPv4Address | IPv6Address, ...]:
    """The bridge's addresses."""
    return (API_ADDRESS, NODES6[1]) if plan.dual_stack else (API_ADDRESS,)


def _set_addresses(netns: str, device: str, addresses: Sequence[IPv4Address | IPv6Address]) -> None:
    for address in addresses:
        length = NODES.prefixlen if address.version == 4 else NODES6.prefixlen
        _ip(netns, "address", "add", f"{address}/{length}", "dev", device)


def _add_routes(netns: str, node: NodePlan) -> None:
    """To the pods of a node."""
    for address, pods in zip(node.addresses, node.pods, strict=True):
        _ip(netns, f"-{address.version}", "route", "add", str(pods), "via", str(address))


def _ip(netns: str, *words: str) -> None:
    run(["ip", "-n", netns, *words])
