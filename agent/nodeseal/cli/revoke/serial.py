"""`nodeseal revoke serial`."""

from __future__ import annotations

from collections.abc import Iterable
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
    from nodeseal.mesh.revocation import Revocation, RevocationKey


@click.command("serial", cls=Command)
@click.argument(
    "serials", metavar="[SERIAL]...", nargs=-1, help="in hexadecimal, as `nodeseal status -o json` has them"
)
@click.option(
    "--file",
    type=PATH,
    metavar="FILE",
    help="One serial number a line, or what `nodeseal ca issued -o json` prints; - is standard input.",
)
@click.option("--trust-domain", metavar="NAME", help="Of the certificates' SPIFFE ids, if it is not the mesh's own.")
@revoke_options
def command(
    serials: tuple[str, ...],
    file: Path | None,
    trust_domain: str | None,
    reason: str,
    undo: bool,
    directory: Path,
    output: str,
) -> int:
    """Revokes the certificates with these serial numbers: their connections are cut, and new handshakes refused.
    Whoever has another certificate of the same identity goes on."""
    from nodeseal.mesh.revocation import REVOCATIONS, revoked_serials
    from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain

    if trust_domain is not None:
        try:
            check_trust_domain(trust_domain)
        except SpiffeIdError as error:
            raise CommandError(str(error)) from None
    numbers = set(numbers_of([*serials, *(read_serials(file) if file is not None else ())]))
    if not numbers:
        raise UsageError("name serial numbers, or a --file with some")

    def concerned(mesh: Mesh) -> list[Revocation]:
        return [
            one
            for one in mesh.of(REVOCATIONS).values()
            if one.node is None and one.trust_domain == trust_domain and not numbers.isdisjoint(one.serials)
        ]

    def new(mesh: Mesh) -> list[Revocation]:
        found = concerned(mesh)
        if not undo:
            left = numbers.difference(*(one.serials for one in found))
            return [revoked_serials(left, trust_domain, reason, now())] if left else []
        kept = [(one, set(one.serials) - numbers) for one in found]
        return [revoked_serials(left, trust_domain, one.reason, one.since) for one, left in kept if left]

    def gone(mesh: Mesh) -> Iterable[RevocationKey]:
        if not undo:
            return []
        found = concerned(mesh)
        if missing := numbers.difference(*(one.serials for one in found)):
            raise CommandError(f"the serial number {min(missing):x} is not revoked in {directory}")
        return [one.key for one in found]

    added, removed = change(directory, new, gone)
    return tell(output, directory, added, removed)
