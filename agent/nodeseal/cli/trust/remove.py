"""`nodeseal trust remove`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.mesh_directory import mesh_options
from nodeseal.cli.output import print_json
from nodeseal.cli.tree import Command
from nodeseal.cli.trust.anchor_rows import find, looked, row_of, shown, told_by_nodes, why_not
from nodeseal.contracts.output import NodeTrust, TrustRemoved

if TYPE_CHECKING:
    from nodeseal.mesh.trust_anchor import TrustAnchor

_REASON = "trust remove --force"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_KEPT = timedelta(days=365)
"""So long a node may be away and still cut what was verified by an anchor that was removed by force."""


@click.command("remove", cls=Command)
@click.argument("name", metavar="ID", help="its fingerprint, or the beginning of it")
@click.option("--force", is_flag=True, help="Also while a node needs it; cuts the connections that do.")
@mesh_options
def command(name: str, force: bool, directory: Path, output: str) -> int:
    """Takes the trust anchor ID out of the mesh: no node takes certificates of it any more. Refuses while a node issues
    by it, has unexpired certificates of it, has live connections with peers that it has verified by it, or has not said
    whether it does, and names these nodes. Look at the time: what needed it last may be a certificate that expires by
    itself. With --force, connections with peers that it verified are cut, on every node, and no others; a node that is
    away cuts them when it comes back. Behind the last anchor each node trusts the root of its own CA, and nothing is
    cut."""
    from nodeseal.mesh.revocation import revoked_anchor
    from nodeseal.mesh.trust_anchor import TRUST_ANCHORS
    from nodeseal.sources.directory import revocations_file, trust_file, writer

    now = datetime.now(UTC)
    with writer.writing(directory):
        mesh, publishers = looked(directory)
        anchor = find(mesh.of(TRUST_ANCHORS), name)
        needed = [one for one in told_by_nodes(anchor, mesh, publishers, now) if one.needs is not None]
        if needed and not force:
            raise CommandError(
                f"the trust anchor {anchor.key[:16]} is needed: {why_not(needed)}; {_listed(anchor.key, needed)}wait, "
                "or cut what needs it with --force"
            )
        if not trust_file.has(directory, anchor.key):
            raise CommandError(
                f"the trust anchor {anchor.key[:16]} is not in {directory / trust_file.NAME}: take it out of the file "
                "that has it"
            )
        # Behind the last one each node trusts the root of its own CA, which may be this one: nothing is cut.
        cuts = force and len(mesh.of(TRUST_ANCHORS)) > 1
        if cuts:
            # Before it is removed: should one of the two writes fail, the command can be run again.
            one = revoked_anchor(anchor.key, _REASON, now.strftime(_TIME))
            revocations_file.revoke_anchor(directory, one, (now - _KEPT).strftime(_TIME))
        try:
            trust_file.remove(directory, [anchor.key])
        except writer.WriteError as error:
            if not cuts:
                raise
            raise _half_done(directory, anchor, error) from error
    answer = TrustRemoved(mesh=str(directory), removed=[row_of(anchor, now)], needed=needed)
    if output == "json":
        print_json(answer)
        return 0
    for row in answer.removed:
        also = f", although it is needed: {why_not(needed)}" if needed else ""
        print(f"removed the trust anchor {shown(row)} from {directory}{also}")
    if cuts:
        print("connections with peers that it verified are cut")
    return 0


def _listed(key: str, needed: Iterable[NodeTrust]) -> str:
    """How to find the connections that need an anchor, if some do."""
    if not any(one.connections for one in needed):
        return ""
    return f"'nodeseal connections --live --anchor {key[:16]}' lists them there; "


def _half_done(directory: Path, anchor: TrustAnchor, error: Exception) -> CommandError:
    """It was revoked, and cannot be removed: takes that back, as far as it can be."""
    from nodeseal.sources.directory import revocations_file, writer

    try:
        revocations_file.restore_anchors(directory, [anchor.key])
    except writer.WriteError:
        return CommandError(
            f"{error}, but that {directory / revocations_file.NAME} has the trust anchor: what it verified is cut; run "
            "this command again"
        )
    return CommandError(str(error))
