"""What this node can tell of the others: from the mesh state, and from what they have published. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from nodeseal.mesh.model import Mesh, Phase, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.trust import Trust, nodes_elsewhere
from nodeseal.sources.source import Description, Publishers

_NAMES_SHOWN = 5
_DIGITS = str.maketrans("", "", "0123456789")


def missing(mesh: Mesh, node: str, source: Description, publishers: Publishers) -> Iterator[Problem]:
    """Workloads of other nodes than `node` that the mesh state wants enrolled and that nobody has published: whoever
    talks with them talks in plaintext."""
    lacking: dict[str, list[WorkloadName]] = {}
    for workload in mesh.workloads.values():
        if workload.wanted and workload.phase is not Phase.ENROLLED and workload.node != node:
            lacking.setdefault(workload.node, []).append(workload.key)
    for other, names in sorted(lacking.items()):
        shown = names_of(names)
        if other in publishers:
            yield Problem(
                ProblemWord.PEER_NOT_ENROLLED,
                f"node {other} has not enrolled {shown}, as the mesh state asks: traffic with it is in plaintext",
                f"see 'nodeseal status' on {other}",
                other,
            )
            continue
        near = get_close_matches(other, [one for one in {*publishers, node} if not _numbered_alike(one, other)], 1)
        hint = f"is {near[0]} meant? Else start" if near else "correct the name, start"
        yield Problem(
            ProblemWord.NODE_UNKNOWN,
            f"the mesh state wants {shown} enrolled on node {other}, and no node of that name has published anything "
            f"in {source.publications}: traffic with it is in plaintext",
            f"{hint} its agent, or {source.sharing}",
            other,
        )


def foreign(mesh: Mesh, node: str, publishers: Publishers, own: Trust) -> Iterator[Problem]:
    """Nodes of this one's trust domain whose CA is not its own: no tunnel between them and this one comes to be."""
    strange = {
        other
        for other, trust in publishers.items()
        if trust is not None and not (trust.issuer in own.anchors and own.issuer in trust.anchors)
    }
    if not strange - {node}:
        # As nearly always: then nobody has to know which nodes they are, of tens of thousands of workloads.
        return
    workloads = mesh.workloads.values()
    nodes = {workload.node for workload in workloads} - nodes_elsewhere(workloads, mesh.trust_domain) - {node}
    for other in sorted(nodes & strange):
        trust = publishers[other]
        assert trust is not None
        theirs, ours = trust.issuer in own.anchors, own.issuer in trust.anchors
        if theirs or ours:
            one, by = (node, f"{other} ({trust.shown})") if ours else (other, f"{node} ({own.shown})")
            text = f"node {one} does not trust the CA of node {by}"
        else:
            text = f"nodes {node} and {other} have different CAs ({own.shown} and {trust.shown})"
        text += ": no connection between their workloads works"
        remedy = "give both the CA of one 'nodeseal ca init', or put both roots into the root.pem of each"
        yield Problem(ProblemWord.OTHER_CA, text, remedy, other)


def claimed_twice(mesh: Mesh) -> Iterator[Problem]:
    """Addresses that several workloads claim: whoever sees that says so, whichever node they are of."""
    for address, claimants in sorted(mesh.contested.items(), key=lambda item: str(item[0])):
        who = " and ".join(f"{one.key} (on {one.node})" for one in claimants)
        enrolled = any(one.accepts_tunnels for one in claimants)
        effect = "connections to it are refused, and plaintext from it" if enrolled else "it is nobody's"
        yield Problem(
            ProblemWord.ADDRESS_CLAIMED_TWICE,
            f"{who} claim the address {address}, so it counts for neither: {effect}",
            f"take {address} away from the one that does not have it",
            str(address),
        )


def _numbered_alike(one: str, other: str) -> bool:
    """node1 and node2: two nodes of one kind, and no slip of the pen."""
    return one.translate(_DIGITS) == other.translate(_DIGITS)


def names_of(names: Iterable[WorkloadName]) -> str:
    """ "default/a, default/b and 17 more"."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
    return ", ".join(listed[:_NAMES_SHOWN]) + more
