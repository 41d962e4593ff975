"""What is on the nodes that a Kubernetes cluster did not put there: compared before nodeseal came and after it went.

Addresses, names of veth devices and other things that are new with each pod are replaced by a word for their kind, so
that pods which were started meanwhile look as those before them did.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cluster import cgroups
from cluster.cluster import Cluster
from cluster.node import Node
from nodeseal.capture.backends.pod_ebpf import CGROUP_LINKS
from nodeseal.linux import bpf

# One line "KIND<tab>LINE" for each thing.
_SCRIPT = r"""
SETTINGS='^net\.(ipv4\.(ip_|conf|tcp|fwmark)|mptcp|ipv6\.fwmark|netfilter\.nf_conntrack_tcp)'
say() { sed "s|^|$1\t|"; }
look() {
  for family in -4 -6; do
    $2 ip $family rule show | say "$1 rule"
    $2 ip $family route show table all | say "$1 route"
  done
  for device in $($2 ls /sys/class/net 2>/dev/null; $2 ip -o link show | sed 's/^[0-9]*: \([^:@]*\).*/\1/'); do
    $2 tc qdisc show dev $device 2>/dev/null | say "$1 qdisc"
    for way in ingress egress; do $2 tc filter show dev $device $way 2>/dev/null | say "$1 filter"; done
  done
  for tables in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
    $2 $tables-save 2>/dev/null | grep -v '^#' | say "$1 $tables"
  done
  $2 nft list tables 2>/dev/null | say "$1 nft"
  $2 sysctl -a --pattern "$SETTINGS" 2>/dev/null | say "$1 sysctl"
}
look node ""
for netns in /run/netns/cni-*; do
  [ -e "$netns" ] && look pod "nsenter --net=$netns"
done
ps -eo args= | say process
find /run /sys/fs/bpf -mindepth 1 2>/dev/null | say file
find /etc /opt /root /tmp /var/lib /var/tmp -xdev -path /var/lib/containerd -prune -o -path /var/lib/kubelet -prune \
  -o -path /var/lib/cni -prune -o -print | say file
cut -d ' ' -f 2,3 /proc/self/mounts | say mount
"""

_ALIKE = (
    (re.compile(r"\b10\.244\.\d+\.\d+\b"), "POD"),
    (re.compile(r"\bveth[0-9a-f]{8}\b"), "VETH"),
    (re.compile(r"\b(fe80|ff02|ff00)::[0-9a-f:]*"), "LINK"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\[\d+:\d+\]"), "COUNTS"),
)
# What containerd, the kubelet, kube-proxy and the CNI plugins make and remove as pods and services come and go.
_THEIRS = (
    re.compile(r"^process\t(ps |sh|sed |nsenter |/pause|.*containerd|.*python3 /apps|sleep infinity|.*runc )"),
    re.compile(r"^file\t/run/(containerd|netns/cni-|runc|xtables.lock|lock|machine)"),
    re.compile(r"^mount\t/(var/lib/kubelet|run/(containerd|netns))"),
    re.compile(r"^node (ip6?tables-\w+|nft)\t.*(KUBE-|CNI-|kube-proxy|:\w+ \w+ COUNTS)"),
    re.compile(r"^node sysctl\tnet\.ipv4\.conf\.VETH"),
)


def read(cluster: Cluster) -> dict[str, frozenset[str]]:
    """By node. Raises ClusterError."""
    return {node.name: frozenset(_of_node(node)) for node in cluster.nodes}


def left(before: dict[str, frozenset[str]], after: dict[str, frozenset[str]]) -> list[str]:
    """What was not there: "node1: pod rule<tab>100: from all fwmark ..."."""
    return [f"{node}: {line}" for node in after for line in sorted(after[node] - before[node])]


def _of_node(node: Node) -> Iterable[str]:
    lines = node.run("sh", "-s", text=_SCRIPT).splitlines()
    lines += [f"cgroup\t{path}" for path in _cgroups(node)]
    lines += [f"program\t{number} of kind {kind} at the node's cgroup" for kind, number in _programs(node)]
    for line in map(normalized, lines):
        if not of_kubernetes(line):
            yield line


def of_kubernetes(line: str) -> bool:
    """Whether it comes and goes with pods and services. `line`: normalized."""
    return any(pattern.search(line) for pattern in _THEIRS)


def normalized(line: str) -> str:
    """With a word in the place of what is new with each pod."""
    for pattern, word in _ALIKE:
        line = pattern.sub(word, line)
    return line.rstrip()


def _cgroups(node: Node) -> Iterable[str]:
    """Those that are not pods'."""
    for one in cgroups.of_host():
        top = one.path / node.plan.cgroup.strip("/")
        for directory, names, _ in os.walk(top):
            names[:] = [name for name in names if name != "kubepods"]
            yield f"{one.path}: /{Path(directory).relative_to(top)}"


def _programs(node: Node) -> Iterable[tuple[int, int]]:
    """Those of nodeseal's kinds at the node's own cgroup, where they see all of its pods."""
    for one in cgroups.of_host():
        if one.kind != "cgroup2":
            continue
        descriptor = os.open(one.path / node.plan.cgroup.strip("/"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _, kind in CGROUP_LINKS.values():
                with contextlib.suppress(OSError):
                    yield from ((kind, number) for number in bpf.cgroup_programs(descriptor, kind))
        finally:
            os.close(descriptor)
