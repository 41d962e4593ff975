"""Probes of the node that strict workloads refuse where rules capture: to be known before the kubelet ends a pod.

Rules see addresses alone, and the node's own address is also on what it only forwards (NodePorts are masqueraded). So
`node_addresses: [local]`, which lets the node's own connections in, has no effect on strict workloads there. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nodeseal.local.config import NodeAddresses
from nodeseal.mesh.address import Address
from nodeseal.mesh.model import Mode, Workload
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.node.peers import names_of

REMEDY = (
    "let the probe be a command (exec), or exclude a port that answers nothing but probes; or let eBPF capture. "
    "'node_addresses: []' says that nobody probes"
)


def refused(workloads: Iterable[Workload], node_addresses: NodeAddresses, local: Collection[Address]) -> str | None:
    """Which of these workloads of the node, which rules capture or will, refuse its probes; one line, None for none.

    One that excludes a port inbound is taken to be probed there, and one that lets an address of the node in, by
    `exclude` or by `node_addresses`, is reached from it.
    """
    if not node_addresses.local:
        return None  # nobody is to be let in
    concerned = []
    for workload in workloads:
        if not workload.wanted or workload.mode is not Mode.STRICT:
            continue
        inbound = workload.exclude.inbound
        networks = (*inbound.networks, *node_addresses.trusted)
        if not inbound.ports and not any(address in network for address in local for network in networks):
            concerned.append(workload.key)
    if not concerned:
        return None
    are = "is strict and" if len(concerned) == 1 else "are strict and"
    return (
        f"{names_of(concerned)} {are} captured by iptables: probes of this node (the kubelet's) are refused there, and "
        "the kubelet ends a pod whose probe fails"
    )


def problem(text: str) -> Problem:
    """As the status has it."""
    return Problem(ProblemWord.PROBES_REFUSED, text, REMEDY)
