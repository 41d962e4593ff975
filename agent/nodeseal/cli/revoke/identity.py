"""`nodeseal revoke identity`."""

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


@click.command("identity", cls=Command)
@click.argument("identity", metavar="ID", help="a SPIFFE id")
@revoke_options
def command(identity: str, reason: str, undo: bool, directory: Path, output: str) -> int:
    """Revokes every certificate with this SPIFFE id, those that are issued later too: running connections are cut at
    once, at both ends, new handshakes are refused, and nothing is issued for it any more."""
    from nodeseal.mesh.revocation import revoked_identity
    from nodeseal.mesh.spiffe import PathId, SpiffeId, SpiffeIdError, parse_identity

    try:
        parsed = parse_identity(identity)
    except SpiffeIdError as error:
        raise CommandError(str(error)) from None
    one = revoked_identity(parsed, reason, now())

    def new(mesh: Mesh) -> list[Revocation]:
        if isinstance(parsed, PathId) and parsed.trust_domain == mesh.trust_domain:
            try:
                SpiffeId.parse(identity)  # which says what form those of the own domain have
            except SpiffeIdError as error:
                raise CommandError(str(error)) from None
        return [one]

    added, removed = change(directory, lambda mesh: [] if undo else new(mesh), lambda _mesh: [one.key] if undo else [])
    return tell(output, directory, added, removed)
