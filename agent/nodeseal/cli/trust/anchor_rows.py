"""Trust anchors as the commands of `nodeseal trust` tell them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nodeseal.cli.errors import CommandError
from nodeseal.contracts.output import NodeTrust, TrustAnchorRow
from nodeseal.mesh.trust import BY_CERTIFICATES, BY_CONNECTIONS, Holder, holders, nodes_elsewhere, why_needed

if TYPE_CHECKING:
    from pathlib import Path

    from nodeseal.mesh.model import Mesh
    from nodeseal.mesh.trust_anchor import TrustAnchor
    from nodeseal.sources.source import Publishers

_PREFIX_MIN = 8
_NAMED_MAX = 8
_LAST = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


def row_of(anchor: TrustAnchor, now: datetime) -> TrustAnchorRow:
    """What a script is told of it."""
    return TrustAnchorRow(**fields_of(anchor, now))


def fields_of(anchor: TrustAnchor, now: datetime) -> dict[str, Any]:
    """Of a TrustAnchorRow."""
    from nodeseal.authority.anchors import AnchorDescription

    found = AnchorDescription.of(anchor.pem)
    if found is None:
        return {"sha256": anchor.key}
    return {
        "sha256": anchor.key,
        "subject": found.subject,
        "trust_domain": found.trust_domain,
        "not_after": found.not_after.isoformat(timespec="seconds"),
        "days_left": (found.not_after - now) // timedelta(days=1),
    }


def shown(row: TrustAnchorRow) -> str:
    """For people: "9c05d9feb092cbb9 (CN=nodeseal root d17c8457)"."""
    return f"{row.sha256[:16]} ({row.subject or 'no certificate'})"


def valid_until(row: TrustAnchorRow) -> str:
    """ "2036-02-27, 3300 days left"."""
    if row.not_after is None or row.days_left is None:
        return "-"
    if row.days_left < 0:
        return f"{row.not_after[:10]}, expired"
    return f"{row.not_after[:10]}, {row.days_left} day{'s' if row.days_left != 1 else ''} left"


def find(anchors: Mapping[str, TrustAnchor], name: str) -> TrustAnchor:
    """The one whose fingerprint is, or begins with, `name`. Raises CommandError."""
    wanted = name.replace(":", "").lower()
    found = [one for key, one in anchors.items() if key.startswith(wanted)]
    if len(wanted) < _PREFIX_MIN:
        raise CommandError(
            f"{name!r} is too short to name a trust anchor: give {_PREFIX_MIN} digits of its fingerprint"
        )
    if len(found) != 1:
        count = "several trust anchors begin" if found else "no trust anchor begins"
        raise CommandError(f"{count} with {name}: see 'nodeseal trust list'")
    return found[0]


def looked(directory: Path) -> tuple[Mesh, Publishers]:
    """The mesh state, and what the nodes of its own trust domain say: those of federated ones have other roots. Raises
    MeshStateError."""
    from nodeseal.sources.directory.source import look

    mesh, publishers = look(directory)
    elsewhere = nodes_elsewhere(mesh.workloads.values(), mesh.trust_domain)
    return mesh, {node: trust for node, trust in publishers.items() if node not in elsewhere}


def nodes_of(mesh: Mesh) -> set[str]:
    """The nodes of its own trust domain that should have an agent."""
    workloads = mesh.workloads.values()
    wanted = {workload.node for workload in workloads if workload.wanted}
    return wanted - nodes_elsewhere(workloads, mesh.trust_domain)


def told_by_nodes(anchor: TrustAnchor, mesh: Mesh, publishers: Publishers, now: datetime) -> list[NodeTrust]:
    """What each node says of it."""
    return [node_row(one, now) for one in holders(anchor.key, nodes_of(mesh), publishers)]


def node_row(holder: Holder, now: datetime) -> NodeTrust:
    """What a script is told of a node."""
    # A publication may say anything: what is wrong in one must not keep anybody from removing an anchor.
    moment = min(holder.until or 0, _LAST)
    until = datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") if moment else None
    return NodeTrust(
        node=holder.node,
        has=holder.has,
        issues=holder.issues,
        certificates_until=until,
        connections=holder.connections,
        needs=why_needed(holder, int(now.timestamp())),
    )


def names(nodes: Iterable[str]) -> str:
    """ "node1, node2 and 17 more"."""
    listed = list(nodes)
    more = f" and {len(listed) - _NAMED_MAX} more" if len(listed) > _NAMED_MAX else ""
    return ", ".join(listed[:_NAMED_MAX]) + more


def why_not(needing: Iterable[NodeTrust]) -> str:
    """ "node1: issues by it; node2: has certificates of it until 2026-12-01 12:00Z, up to 30 connections by it"."""
    reasons: dict[str, list[str]] = {}
    for one in needing:
        reasons.setdefault(_why(one), []).append(one.node)
    return "; ".join(f"{names(found)}: {why}" for why, found in reasons.items())


def _why(one: NodeTrust) -> str:
    connections = f"up to {one.connections} connection{'s' if one.connections != 1 else ''} by it"
    if one.needs == BY_CERTIFICATES:
        until = f" until {one.certificates_until[:16].replace('T', ' ')}Z" if one.certificates_until else ""
        return f"{one.needs}{until}{f', and {connections}' if one.connections else ''}"
    return f"has {connections}" if one.needs == BY_CONNECTIONS else str(one.needs)
