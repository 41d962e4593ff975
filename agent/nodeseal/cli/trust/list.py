"""`nodeseal trust list`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.mesh_directory import mesh_options
from nodeseal.cli.output import print_json
from nodeseal.cli.table import note, render
from nodeseal.cli.tree import Command
from nodeseal.cli.trust.anchor_rows import row_of, valid_until
from nodeseal.contracts.output import TrustList


@click.command("list", cls=Command)
@mesh_options
def command(directory: Path, output: str) -> int:
    """Lists the trust anchors of the mesh. If there is none, each node trusts the roots of its own CA."""
    from nodeseal.mesh.trust_anchor import TRUST_ANCHORS
    from nodeseal.sources.directory.source import look

    now = datetime.now(UTC)
    mesh, _publishers = look(directory)
    found = TrustList(mesh=str(directory), anchors=[row_of(one, now) for one in mesh.of(TRUST_ANCHORS).values()])
    if output == "json":
        print_json(found)
    else:
        print(text(found))
    return 0


def text(found: TrustList) -> str:
    """For a person."""
    if not found.anchors:
        return note(f"no trust anchor in {found.mesh}: each node trusts the root.pem of its own CA", "")
    rows = [(row.sha256, row.subject or "no certificate", valid_until(row)) for row in found.anchors]
    return render(("ID", "SUBJECT", "VALID UNTIL"), rows, fold=(0, 1))
