"""`nodeseal revoke identity`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.revoke.revoke_command import change, now, revoke_options, tell
from nodeseal.cli.tree import Command


@click.command("identity", cls=Command)
@click.argument("identity", metavar="ID", help="a SPIFFE id")
@revoke_options
def command(identity: str, reason: str, undo: bool, directory: Path, output: str) -> int:
    """Revokes every certificate with this SPIFFE id, those that are issued later too: running connections are cut at
    once, at both ends, new handshakes are refused, and nothing is issued for it any more."""
    from nodeseal.mesh.revocation import revoked_identity
    from nodeseal.mesh.spiffe import SpiffeId, SpiffeIdError

    try:
        one = revoked_identity(SpiffeId.parse(identity), reason, now())
    except SpiffeIdError as error:
        raise CommandError(str(error)) from None
    added, removed = change(directory, lambda _mesh: [] if undo else [one], lambda _mesh: [one.key] if undo else [])
    return tell(output, directory, added, removed)
