"""`nodeseal revoke node`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeseal.cli.errors import CommandError, UsageError
from nodeseal.cli.options import PATH
from nodeseal.cli.revoke.revoke_command import change, now, revoke_options, tell
from nodeseal.cli.revoke.serials import numbers_of, read_serials
from nodeseal.cli.tree import Command

if TYPE_CHECKING:
    from nodeseal.mesh.model import Mesh
    from nodeseal.mesh.revocation import Revocation
    from nodeseal.mesh.spiffe import Identity


@click.command("node", cls=Command)
@click.argument("node", metavar="NODE", help="its name in the mesh state")
@click.option(
    "--issued",
    type=PATH,
    metavar="FILE",
    help="What `nodeseal ca issued --node NODE --valid -o json` prints, or one serial number a line: revoked too. - is "
    "standard input.",
)
@revoke_options
def command(node: str, issued: Path | None, reason: str, undo: bool, directory: Path, output: str) -> int:
    """Revokes a node: nothing is issued to it any more, and the identities that its workloads alone have now are
    revoked. Those that workloads of other nodes have too are named: give what was issued to the node as --issued, now
    or when you run this again. --undo takes back all of it. A workload that moves to another node stays revoked: give
    it another service account."""
    from nodeseal.mesh.revocation import REVOCATIONS, RevocationKey, Revoked, revoked_node

    if undo and issued is not None:
        raise UsageError("--undo takes back the node and all that was issued to it; leave out --issued")
    key = RevocationKey(Revoked.NODE, node)
    numbers = set(numbers_of(read_serials(issued, node))) if issued is not None else set()
    notes: list[str] = []

    def is_more(mesh: Mesh) -> bool:
        """Whether the node is revoked already, and more of its certificates are now."""
        present = mesh.of(REVOCATIONS).get(key)
        return present is not None and not numbers <= set(present.serials)

    def new(mesh: Mesh) -> list[Revocation]:
        present = mesh.of(REVOCATIONS).get(key)
        if present is not None:
            # As of then, with what is known of by now.
            serials = numbers.union(present.serials)
            return [revoked_node(node, present.identities, reason or present.reason, present.since, serials)]
        if not any(workload.node == node for workload in mesh.workloads.values()):
            raise CommandError(f"the mesh state {directory} has no workload on the node {node}; correct its name")
        alone, shared = identities_of(mesh, node)
        for identity, others in shared.items():
            but = ", but for the certificates that are" if numbers else ""
            notes.append(f"not revoked{but}: {identity}, which workloads on {', '.join(others)} have too")
        return [revoked_node(node, alone, reason, now(), numbers)]

    added, removed = change(
        directory,
        lambda mesh: [] if undo else new(mesh),
        lambda mesh: [key] if undo or is_more(mesh) else [],
    )
    return tell(output, directory, added, removed if undo else [], *notes)


def identities_of(mesh: Mesh, node: str) -> tuple[list[Identity], dict[Identity, list[str]]]:
    """(the identities that workloads of this node alone have, the others with the nodes that have them too)."""
    nodes: dict[Identity, set[str]] = {}
    for workload in mesh.workloads.values():
        nodes.setdefault(workload.identity(mesh.trust_domain), set()).add(workload.node)
    mine = {identity: others for identity, others in nodes.items() if node in others}
    alone = sorted((identity for identity, others in mine.items() if len(others) == 1), key=str)
    shared = sorted((identity for identity, others in mine.items() if len(others) > 1), key=str)
    return alone, {identity: sorted(mine[identity] - {node}) for identity in shared}
