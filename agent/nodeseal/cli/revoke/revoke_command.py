"""What the commands of `nodeseal revoke` have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.mesh_directory import mesh_options
from nodeseal.cli.options import Callback
from nodeseal.cli.output import print_json
from nodeseal.contracts.output import RevocationRow, RevocationsChanged

if TYPE_CHECKING:
    from nodeseal.mesh.model import Mesh
    from nodeseal.mesh.revocation import Revocation, RevocationKey

_REASON_MAX = 200


def revoke_options(callback: Callback) -> Callback:
    """--reason, --undo, --mesh and -o."""
    reason = click.option("--reason", default="", metavar="TEXT", help="For whoever reads the list.", callback=_line)
    undo = click.option("--undo", is_flag=True, help="Take the revocation back.")
    return reason(undo(mesh_options(callback)))


def _line(_ctx: click.Context, _parameter: click.Parameter, text: str) -> str:
    if len(text) > _REASON_MAX or not text.isprintable():
        raise click.BadParameter(f"give one line of at most {_REASON_MAX} characters")
    return text


def now() -> str:
    """As a revocation says since when it is."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def change(
    directory: Path, new: Callable[[Mesh], Iterable[Revocation]], gone: Callable[[Mesh], Iterable[RevocationKey]]
) -> tuple[list[Revocation], list[Revocation]]:
    """Puts in what `new` says, and takes out what `gone` says; (what was put in, what was taken out). What is there
    already stays as it is. Raises WriteError, MeshStateError."""
    from nodeseal.mesh.revocation import REVOCATIONS
    from nodeseal.sources.directory import revocations_file, writer
    from nodeseal.sources.directory.source import look

    with writer.writing(directory):
        mesh, _publishers = look(directory)
        known = mesh.of(REVOCATIONS)
        listed = revocations_file.listed(directory)
        removed = []
        for key in gone(mesh):
            if key not in listed:
                where = f" in {directory / revocations_file.NAME}; take it out of the file that has it"
                raise CommandError(f"{key} is not revoked{where if key in known else f' in {directory}'}")
            removed.append(listed.pop(key))
        added = [one for one in new(mesh) if one.key not in known or one.key in {key.key for key in removed}]
        if added or removed:
            revocations_file.write(directory, [*listed.values(), *added])
    return added, removed


def tell(output: str, directory: Path, added: list[Revocation], removed: list[Revocation], *notes: str) -> int:
    """What was done, for a script or a person; the exit status."""
    if output == "json":
        print_json(
            RevocationsChanged(
                mesh=str(directory),
                revoked=list(map(row_of, added)),
                restored=list(map(row_of, removed)),
                notes=list(notes),
            )
        )
        return 0
    for one in added:
        print(f"revoked {shown(one)} in {directory}")
    for one in removed:
        print(f"no longer revoked {shown(one)} in {directory}")
    if not added and not removed:
        print(f"it is revoked in {directory} already")
    for note in notes:
        print(note)
    return 0


def row_of(one: Revocation) -> RevocationRow:
    """What a script is told of it."""
    fields: dict[str, Any] = {"what": one.key.what, "name": one.key.name}
    return RevocationRow(
        **fields,
        identities=list(map(str, one.identities)),
        serials=len(one.serials),
        reason=one.reason,
        since=one.since or None,
    )


def shown(one: Revocation) -> str:
    """ "node node3", "serial 3fa9", "17 serial numbers", "node node3 and 17 certificates"."""
    count = len(one.serials)
    if one.node is not None:
        return f"{one.key} and {count} certificate{'s' if count != 1 else ''}" if count else str(one.key)
    return str(one.key) if count < 2 else f"{count} serial numbers"
