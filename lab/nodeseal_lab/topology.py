"""The lab's network: namespaces joined by veth pairs, made from a plan with pyroute2.

```
   pod        node                      fabric                     node        pod
  eth0 ---- podK nsbr0   eth0 ---- node1 nsbr0 node2 ---- eth0   nsbr0 podK ---- eth0
            10.77.1.1    10.77.0.1                   10.77.0.2   10.77.2.1
```

Both ends of every pair are made inside the lab's namespaces, so the host's own namespace never sees an interface of
the lab.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from nodeseal.mesh.address import Address
from nodeseal_lab.errors import LabError
from nodeseal_lab.namespaces import (
    NETNS_DIR,
    create_namespace,
    list_namespaces,
    remove_namespace,
    run_in,
    write_sysctls,
)
from nodeseal_lab.plan import IPV4_LENGTH, IPV6_LENGTH, Node, Plan, Pod, prefix

BRIDGE = "nsbr0"
UPLINK = "eth0"

IPV6_SETTINGS = Path("/proc/sys/net/ipv6")
# Nobody else is there: addresses count at once (no duplicate address detection), and no router is waited for.
_IPV6_SYSCTLS = {"ipv6/conf/default/accept_dad": "0", "ipv6/conf/default/accept_ra": "0"}

_libc = ctypes.CDLL(None, use_errno=True)


def make_topology(plan: Plan) -> None:
    """Makes every namespace, link, address and route of the plan. Raises LabError; what was made by then stays, and
    `remove_topology` removes it."""
    if plan.ipv6 and not IPV6_SETTINGS.is_dir():
        raise LabError("the kernel has no IPv6: make the lab without --ipv6")
    for name in plan.namespaces:
        create_namespace(name)
        if plan.ipv6:
            # Before there are devices, which take them over.
            write_sysctls(name, _IPV6_SYSCTLS)
    for node in plan.nodes:
        _in_namespace(node.netns, partial(_make_node, plan, node))
        write_sysctls(node.netns, _sysctls(UPLINK, BRIDGE, forward=True, ipv6=plan.ipv6))
    write_sysctls(plan.fabric, _bridge_sysctls())
    _in_namespace(plan.fabric, partial(_make_bridge, [node.name for node in plan.nodes]))
    for pod in plan.pods:
        if pod.cgroup:
            continue
        node = plan.node(pod.node)
        _in_namespace(pod.netns, partial(_make_pod, node, pod))
        write_sysctls(pod.netns, _sysctls(UPLINK, forward=False, ipv6=plan.ipv6))
    for node in plan.nodes:
        _in_namespace(node.netns, partial(_make_node_bridge, plan, node))


def remove_topology(name: str) -> list[str]:
    """Removes every namespace of the lab `name`, found by the beginning of their names. Returns the names removed."""
    names = list_namespaces(prefix(name))
    for namespace in names:
        remove_namespace(namespace)
    return names


def netns_directory_is_mounted() -> bool:
    """Whether /run/netns is a mount, as the first `ip netns add` after boot makes it."""
    with Path("/proc/self/mountinfo").open() as mounts:
        return any(line.split()[4] == str(NETNS_DIR) for line in mounts)


def remove_netns_directory() -> None:
    """Takes away /run/netns and its mount when no namespace is in it (to be called only if the lab made it)."""
    if NETNS_DIR.is_dir() and not list_namespaces():
        _libc.umount2(os.fsencode(NETNS_DIR), 0)
        with contextlib.suppress(OSError):
            NETNS_DIR.rmdir()


def _make_node(plan: Plan, node: Node, links: Any) -> None:
    _make_pair(links, UPLINK, plan.fabric, node.name)
    _set_addresses(links, UPLINK, node.addresses)
    links.link("add", ifname=BRIDGE, kind="bridge")
    for address in node.addresses if plan.node_rules else ():
        # As real nodes have it: what is sent to a service needs a route before its address is translated.
        links.route("add", dst="default", oif=_index(links, UPLINK), family=_family(address))
    for other in plan.nodes:
        if other != node:
            for gateway, address in zip(other.addresses, other.gateways, strict=True):
                network = ip_interface(f"{address}/{_length(address)}").network
                links.route("add", dst=str(network), gateway=str(gateway), family=_family(gateway))


def _make_pod(node: Node, pod: Pod, links: Any) -> None:
    _make_pair(links, UPLINK, node.netns, pod.link)
    _set_addresses(links, UPLINK, pod.addresses)
    for gateway in node.gateways:
        links.route("add", dst="default", gateway=str(gateway), family=_family(gateway))


def _make_node_bridge(plan: Plan, node: Node, links: Any) -> None:
    _add_to_bridge(links, [pod.link for pod in plan.pods if pod.node == node.name and not pod.cgroup])
    _set_addresses(links, BRIDGE, node.gateways)


def _make_bridge(ports: Sequence[str], links: Any) -> None:
    links.link("add", ifname=BRIDGE, kind="bridge")
    _add_to_bridge(links, ports)


def _in_namespace(netns: str, work: Callable[[Any], None]) -> None:
    """Runs `work` with netlink inside a namespace, `lo` up. Turns what netlink refuses into one line.

    The socket is made by a thread that is in the namespace: IPRoute(netns=...) would fork this process, signal handlers
    and locks included."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def connect() -> None:
        with IPRoute() as links:
            links.link("set", index=1, state="up")
            work(links)

    try:
        run_in(netns, connect)
    except NetlinkError as error:
        raise LabError(f"cannot make the network in {netns}: {error}") from error


def _make_pair(links: Any, name: str, peer_netns: str, peer_name: str) -> None:
    links.link("add", ifname=name, kind="veth", peer={"ifname": peer_name, "net_ns_fd": peer_netns})


def _add_to_bridge(links: Any, ports: Sequence[str]) -> None:
    bridge = _index(links, BRIDGE)
    links.link("set", index=bridge, state="up")
    for name in ports:
        links.link("set", index=_index(links, name), master=bridge, state="up")


def _set_addresses(links: Any, name: str, addresses: Sequence[Address]) -> None:
    index = _index(links, name)
    for address in addresses:
        links.addr("add", index=index, address=str(address), prefixlen=_length(address), family=_family(address))
    links.link("set", index=index, state="up")


def _length(address: Address) -> int:
    return IPV6_LENGTH if address.version == 6 else IPV4_LENGTH


def _family(address: Address) -> int:
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def _index(links: Any, name: str) -> int:
    found: list[int] = links.link_lookup(ifname=name)
    if not found:
        raise LabError(f"the interface {name} is gone while the lab is being made")
    return found[0]


def _sysctls(*devices: str, forward: bool, ipv6: bool) -> dict[str, str]:
    """Strict reverse path filtering everywhere, as careful platforms have it; a loss-based congestion control, since
    the lab is one machine (of these, a namespace may only have one of the host's allowed list, see
    tcp_set_default_congestion_ control in net/ipv4/tcp_cong.c, and reno is always on it); no IPv6 in a lab that does
    not use it."""
    available = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
    values = {f"ipv4/conf/{device}/rp_filter": "1" for device in ("all", "default", *devices)}
    values["ipv4/tcp_congestion_control"] = "cubic" if "cubic" in available else "reno"
    if not ipv6 and IPV6_SETTINGS.is_dir():
        values["ipv6/conf/all/disable_ipv6"] = "1"
        values["ipv6/conf/default/disable_ipv6"] = "1"
    if forward:
        values |= {"ipv4/ip_forward": "1"} | _bridge_sysctls()
        if ipv6:
            values["ipv6/conf/all/forwarding"] = "1"
    return values


def _bridge_sysctls() -> dict[str, str]:
    """Frames that cross a bridge do not visit the IP firewall, as they do where br_netfilter is loaded: the lab has no
    firewall, and its hops shall cost no more than they must."""
    names = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
    return {f"bridge/{name}": "0" for name in names if Path("/proc/sys/net/bridge", name).exists()}
