"""`nodeseal revoke node`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.revoke.revoke_command import change, now, revoke_options, tell
from nodeseal.cli.tree import Command

if TYPE_CHECKING:
    from nodeseal.mesh.model import Mesh
    from nodeseal.mesh.revocation import Revocation
    from nodeseal.mesh.spiffe import SpiffeId


@click.command("node", cls=Command)
@click.argument("node", metavar="NODE", help="its name in the mesh state")
@revoke_options
def command(node: str, reason: str, undo: bool, directory: Path, output: str) -> int:
    """Revokes a node: nothing is issued to it any more, and the identities that its workloads alone have now are
    revoked. Those that workloads of other nodes have too are named: revoke their certificates by serial numbers. A
    workload that moves to another node stays revoked: give it another service account."""
    from nodeseal.mesh.revocation import RevocationKey, Revoked, revoked_node

    notes: list[str] = []

    def new(mesh: Mesh) -> list[Revocation]:
        if not any(workload.node == node for workload in mesh.workloads.values()):
            raise CommandError(f"the mesh state {directory} has no workload on the node {node}; correct its name")
        alone, shared = identities_of(mesh, node)
        for identity, others in shared.items():
            notes.append(f"not revoked: {identity}, which workloads on {', '.join(others)} have too")
        return [revoked_node(node, alone, reason, now())]

    key = RevocationKey(Revoked.NODE, node)
    added, removed = change(directory, lambda mesh: [] if undo else new(mesh), lambda _mesh: [key] if undo else [])
    return tell(output, directory, added, removed, *notes)


def identities_of(mesh: Mesh, node: str) -> tuple[list[SpiffeId], dict[SpiffeId, list[str]]]:
    """(the identities that workloads of this node alone have, the others with the nodes that have them too)."""
    nodes: dict[SpiffeId, set[str]] = {}
    for workload in mesh.workloads.values():
        nodes.setdefault(workload.identity(mesh.trust_domain), set()).add(workload.node)
    mine = {identity: others for identity, others in nodes.items() if node in others}
    alone = sorted(identity for identity, others in mine.items() if len(others) == 1)
    return alone, {identity: sorted(others - {node}) for identity, others in sorted(mine.items()) if len(others) > 1}
