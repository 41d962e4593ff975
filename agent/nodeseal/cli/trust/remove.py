"""`nodeseal trust remove`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.mesh_directory import mesh_options
from nodeseal.cli.output import print_json
from nodeseal.cli.tree import Command
from nodeseal.cli.trust.anchor_rows import find, row_of, shown, told_by_nodes, why_not
from nodeseal.contracts.output import TrustRemoved


@click.command("remove", cls=Command)
@click.argument("name", metavar="ID", help="its fingerprint, or the beginning of it")
@click.option("--force", is_flag=True, help="Also while a node needs it.")
@mesh_options
def command(name: str, force: bool, directory: Path, output: str) -> int:
    """Takes the trust anchor ID out of the mesh: no node takes certificates of it any more. Refuses while a node issues
    by it, has unexpired certificates of it, or has not said whether it does, and names these nodes. Look at the time:
    what needed it last may be a certificate that expires by itself."""
    from nodeseal.mesh.trust_anchor import TRUST_ANCHORS
    from nodeseal.sources.directory import trust_file, writer
    from nodeseal.sources.directory.source import look

    now = datetime.now(UTC)
    with writer.writing(directory):
        mesh, publishers = look(directory)
        anchor = find(mesh.of(TRUST_ANCHORS), name)
        needed = [one for one in told_by_nodes(anchor, mesh, publishers, now) if one.needs is not None]
        if needed and not force:
            raise CommandError(
                f"the trust anchor {anchor.key[:16]} is needed: {why_not(needed)}; wait, or cut what needs it with "
                "--force"
            )
        if not trust_file.remove(directory, [anchor.key]):
            raise CommandError(
                f"the trust anchor {anchor.key[:16]} is not in {directory / trust_file.NAME}: take it out of the file "
                "that has it"
            )
    answer = TrustRemoved(mesh=str(directory), removed=[row_of(anchor, now)], needed=needed)
    if output == "json":
        print_json(answer)
        return 0
    for row in answer.removed:
        also = f", although it is needed: {why_not(needed)}" if needed else ""
        print(f"removed the trust anchor {shown(row)} from {directory}{also}")
    return 0
