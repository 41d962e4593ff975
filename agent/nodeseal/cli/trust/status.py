"""`nodeseal trust status`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.mesh_directory import mesh_options
from nodeseal.cli.output import print_json
from nodeseal.cli.table import note, render
from nodeseal.cli.tree import Command
from nodeseal.cli.trust.anchor_rows import fields_of, looked, names, told_by_nodes, why_not
from nodeseal.contracts.output import AnchorStatus, TrustStatus


@click.command("status", cls=Command)
@mesh_options
def command(directory: Path, output: str) -> int:
    """Shows which nodes have each trust anchor in their cores, as they say themselves, and which need it. The exit
    status is 0 when every node has all of them and no other, 1 otherwise."""
    from nodeseal.mesh.trust import lingering
    from nodeseal.mesh.trust_anchor import TRUST_ANCHORS

    now = datetime.now(UTC)
    mesh, publishers = looked(directory)
    anchors = [
        AnchorStatus(**fields_of(one, now), nodes=told_by_nodes(one, mesh, publishers, now))
        for one in mesh.of(TRUST_ANCHORS).values()
    ]
    issuers: dict[str, list[str]] = {}
    for node, trust in sorted(publishers.items()):
        if trust is not None:
            issuers.setdefault(trust.issuer, []).append(node)
    # Without an anchor in the mesh state each node trusts what its own CA has.
    left = lingering((one.sha256 for one in anchors), publishers) if anchors else {}
    complete = not left and all(node.has for anchor in anchors for node in anchor.nodes)
    found = TrustStatus(mesh=str(directory), complete=complete, anchors=anchors, issuers=issuers, lingering=left)
    if output == "json":
        print_json(found)
    else:
        print(text(found))
    return 0 if complete else 1


def text(found: TrustStatus) -> str:
    """For a person."""
    lines = []
    if not found.anchors:
        lines.append(note(f"no trust anchor in {found.mesh}: each node trusts the root.pem of its own CA", ""))
    else:
        rows = [(one.sha256[:16], one.subject or "no certificate", _has(one), _needs(one)) for one in found.anchors]
        lines.append(render(("ID", "SUBJECT", "NODES THAT HAVE IT", "NEEDED BY"), rows, fold=(1, 2, 3)))
    for root, nodes in found.issuers.items():
        lines.append(note(f"{names(nodes)}: issue{'s' if len(nodes) == 1 else ''} by the root {root[:16]}", ""))
    for root, nodes in found.lingering.items():
        still = f"still trust{'s' if len(nodes) == 1 else ''} the root {root[:16]}, which is no trust anchor any more"
        lines.append(note(f"{names(nodes)}: {still}", ""))
    return "\n".join(lines)


def _has(anchor: AnchorStatus) -> str:
    lacking = [one.node for one in anchor.nodes if not one.has]
    count = f"{len(anchor.nodes) - len(lacking)} of {len(anchor.nodes)}"
    return f"{count}, not {names(lacking)}" if lacking else count


def _needs(anchor: AnchorStatus) -> str:
    return why_not(one for one in anchor.nodes if one.needs is not None) or "nobody"
