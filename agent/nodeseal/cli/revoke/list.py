"""`nodeseal revoke list`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.mesh_directory import mesh_options
from nodeseal.cli.output import print_json
from nodeseal.cli.revoke.revoke_command import row_of
from nodeseal.cli.table import render
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import RevocationList, RevocationRow


@click.command("list", cls=Command)
@mesh_options
def command(directory: Path, output: str) -> int:
    """Lists what is revoked in the mesh state, since when, and why."""
    from nodeseal.mesh.revocation import REVOCATIONS
    from nodeseal.sources.directory.source import look

    mesh, _publishers = look(directory)
    found = RevocationList(mesh=str(directory), revoked=list(map(row_of, mesh.of(REVOCATIONS).values())))
    if output == "json":
        print_json(found)
    else:
        print(text(found))
    return 0


def text(found: RevocationList) -> str:
    """For a person."""
    if not found.revoked:
        return f"nothing is revoked in {found.mesh}"
    rows = [(row.what, _name(row), row.since or "-", row.reason or "-") for row in found.revoked]
    return render(("WHAT", "NAME", "SINCE", "REASON"), rows, fold=(1, 3))


def _name(row: RevocationRow) -> str:
    if row.what == "node":
        count = f"{row.serials} certificate{'s' if row.serials != 1 else ''}"
        also = ", ".join([*row.identities, *([count] if row.serials else [])])
    elif row.serials > 1:
        return f"{row.serials} of them"
    else:
        also = ""
    return f"{row.name} ({also})" if also else row.name
