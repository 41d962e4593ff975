"""Load balancers of others that work within connect(), for every pod of the node: what a workload dials is another
address before nodeseal sees it, so that nobody knows which Service was meant.

By the names of their programs: https://github.com/cilium/cilium/blob/main/bpf/bpf_sock.c,
https://github.com/projectcalico/calico/blob/master/felix/bpf-gpl/connect_balancer_v46.c
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nodeseal.linux import bpf

_ATTACH_TYPES = (bpf.ATTACH_CGROUP_INET4_CONNECT, bpf.ATTACH_CGROUP_INET6_CONNECT)
# The kernel keeps 15 characters of a name.
_KNOWN = {
    "cil_sock": ("Cilium", "set socketLB.hostNamespaceOnly=true in its Helm values"),
    "calico_connect": ("Calico", "set bpfConnectTimeLoadBalancing: Disabled in its FelixConfiguration"),
}


def found(cgroup: Path) -> Iterator[str]:
    """One line for each that is attached to the root of the cgroup v2 tree, with what to do. Raises OSError."""
    descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        numbers = {number for kind in _ATTACH_TYPES for number in bpf.cgroup_programs(descriptor, kind)}
    finally:
        os.close(descriptor)
    seen: dict[str, str] = {}
    for number in sorted(numbers):
        name = _name(number)
        for prefix in _KNOWN:
            if name.startswith(prefix):
                seen.setdefault(prefix, name)
    for prefix, name in seen.items():
        whose, remedy = _KNOWN[prefix]
        yield (
            f"{whose} translates addresses of Services within connect() (its program {name} is attached to {cgroup}), "
            f"before nodeseal can see which Service is dialled: {remedy}"
        )


def _name(number: int) -> str:
    """Of a program; nothing where it has gone meanwhile."""
    try:
        descriptor = bpf.program_by_identifier(number)
    except FileNotFoundError:
        return ""
    try:
        return bpf.program_name(descriptor)
    finally:
        os.close(descriptor)
