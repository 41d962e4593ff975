"""What a node tells of the trust anchors that it has and needs, so that others see whether theirs are others, and
whether one may be removed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from nodeseal.mesh.workload import Workload

DIGEST_LENGTH = 32
"""Of a fingerprint, in hexadecimal digits: half of one is enough to compare, and nobody trusts it."""


BY_CERTIFICATES, BY_CONNECTIONS = "has certificates of it", "has connections by it"
"""Why a node needs an anchor."""


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """What of a node is verified by an anchor by which it does not issue any more, or whom it has verified by one. Does
    not change with every connection: a publication is read by all nodes."""

    anchor: str
    """The anchor's digest."""
    until: int = 0
    """When the last of the node's certificates that are verified by it expires, in seconds since the epoch; 0: it has
    none."""
    connections: int = 0
    """At most so many of its live connections are with peers that it has verified by it; 0: none is. See told_count."""


@dataclass(frozen=True, slots=True)
class Trust:
    """A node's CA: `anchors` are digests of the roots that its core has, `issuer` that of the one by which it issues.

    `needs`: others that it has certificates of, or connections by. None: it does not say, as agents of former versions
    do.
    """

    anchors: frozenset[str]
    issuer: str
    needs: tuple[Need, ...] | None = None

    @classmethod
    def of(cls, anchors: Iterable[str], issuer: str, needs: Iterable[Need] | None = None) -> Self:
        """Of whole fingerprints; those of `needs` are digests."""
        digests = frozenset(map(digest_of, anchors))
        return cls(digests, digest_of(issuer), None if needs is None else tuple(sorted(needs)))

    @property
    def shown(self) -> str:
        """For people: the beginning of the issuer's digest."""
        return f"root {self.issuer[:8]}"


def digest_of(fingerprint: str) -> str:
    """By which an anchor is known in publications."""
    return fingerprint[:DIGEST_LENGTH]


def needs_of(certificates: Iterable[tuple[str, int]], connections: Mapping[str, int], issuer: str) -> Iterator[Need]:
    """`certificates`: (fingerprint of the anchor, when it expires) of each; `connections`: how many there are, by the
    digest of the anchor; `issuer`: the fingerprint of the anchor by which the node issues, which it needs anyway."""
    latest: dict[str, int] = {}
    for anchor, until in certificates:
        digest = digest_of(anchor)
        latest[digest] = max(until, latest.get(digest, 0))
    for digest in {**latest, **connections}:
        if digest != digest_of(issuer):
            yield Need(digest, latest.get(digest, 0), connections.get(digest, 0))


def told_count(now: int, told: int) -> int:
    """What is told of `now` connections where `told` was told last: at least as many, and the same again until half of
    those are gone, or there are more. So 500 that end one after the other change a publication a few times."""
    if told // 2 < now <= told:
        return told
    unit: int = 10 ** (len(str(now)) - 1)
    return -(-now // unit) * unit


@dataclass(frozen=True, slots=True)
class Holder:
    """What a node says of one anchor."""

    node: str
    has: bool | None
    """Its core verifies by it; None: nobody knows, for the node says nothing."""
    issues: bool = False
    """It issues by it."""
    until: int | None = None
    """See Need; None: it does not say."""
    connections: int = 0
    """Same."""


def holders(anchor: str, nodes: Iterable[str], publishers: Mapping[str, Trust | None]) -> list[Holder]:
    """What each node says of the anchor with this fingerprint, in the order of their names. `nodes`: those of the mesh
    state; others that have published count as well."""
    digest = digest_of(anchor)
    found = []
    for node in sorted({*nodes, *publishers}):
        trust = publishers.get(node)
        if trust is None:
            found.append(Holder(node, None))
            continue
        until, connections = None, 0
        if trust.needs is not None:
            need = next((need for need in trust.needs if need.anchor == digest), Need(digest))
            until, connections = need.until, need.connections
        found.append(Holder(node, digest in trust.anchors, trust.issuer == digest, until, connections))
    return found


def why_needed(holder: Holder, now: int) -> str | None:
    """Why an anchor must not be removed yet, in words that follow the node's name; None: for all that this node says it
    may. `now`: seconds since the epoch."""
    if holder.issues:
        return "issues by it"
    if holder.until is None:
        return "has not said what it needs"
    if holder.until > now:
        return BY_CERTIFICATES
    return BY_CONNECTIONS if holder.connections else None


def nodes_elsewhere(workloads: Iterable[Workload], trust_domain: str) -> frozenset[str]:
    """The nodes of federated meshes: those all of whose workloads are of other trust domains than `trust_domain`, the
    mesh's own. They issue by roots of their own, and the mesh's trust anchors do not concern them."""
    # Of tens of thousands of workloads there are few of these.
    found = {(workload.node, workload.trust_domain) for workload in workloads}
    ours = {node for node, domain in found if domain in (None, trust_domain)}
    return frozenset({node for node, _ in found} - ours)


def lingering(anchors: Iterable[str], publishers: Mapping[str, Trust | None]) -> dict[str, list[str]]:
    """The roots that nodes have in their cores and that are not among `anchors` (fingerprints), those of the mesh:
    digest -> these nodes. One was removed and the node has not heard of it, or the node issues by it."""
    kept = set(map(digest_of, anchors))
    found: dict[str, list[str]] = {}
    for node, trust in sorted(publishers.items()):
        for digest in sorted(trust.anchors - kept if trust is not None else ()):
            found.setdefault(digest, []).append(node)
    return found


def would_be_lost(anchors: Iterable[str], publishers: Mapping[str, Trust | None]) -> dict[str, list[str]]:
    """The anchors by which nodes issue and that are not among `anchors` (fingerprints): digest -> these nodes. Were
    `anchors` all that the mesh trusts, nobody would take their certificates."""
    kept = set(map(digest_of, anchors))
    lost: dict[str, list[str]] = {}
    for node, trust in sorted(publishers.items()):
        if trust is not None and trust.issuer not in kept:
            lost.setdefault(trust.issuer, []).append(node)
    return lost
