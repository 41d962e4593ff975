"""The mesh directory that a command reads or writes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from nodeseal.cli import nodes
from nodeseal.cli.errors import CommandError, UsageError
from nodeseal.cli.options import PATH, Callback, output_option


def mesh_options(callback: Callback) -> Callback:
    """--mesh and -o, for a command about a mesh directory: the callback gets it as `directory`. What is wrong with it,
    or with a certificate, is a line of the command's."""

    @functools.wraps(callback)
    def located(*args: Any, mesh: Path | None, **options: Any) -> Any:
        from nodeseal.authority.errors import AuthorityError
        from nodeseal.sources.directory.writer import WriteError
        from nodeseal.sources.source import MeshStateError

        directory = mesh if mesh is not None else _followed()
        try:
            return callback(*args, directory=directory, **options)
        except MeshStateError as error:
            raise CommandError(f"the mesh state {directory} cannot be used:\n{error}") from None
        except (AuthorityError, WriteError) as error:
            raise CommandError(str(error)) from None

    option = click.option(
        "--mesh", type=PATH, metavar="DIR", help="The mesh directory; default: the one of the node that runs here."
    )
    return option(output_option(located))


def _followed() -> Path:
    """That of the nodes of this machine. Raises UsageError when there is none, or more than one."""
    from nodeseal.api.client import ask
    from nodeseal.contracts.api import STATUS

    found = nodes.ask_all(nodes.run_directories(None), lambda path: ask(path, STATUS))
    directories = sorted({answer.says.mesh.source for answer in found.answers})
    if len(directories) == 1:
        return Path(directories[0])
    if directories:
        raise UsageError(f"the nodes of this machine follow several: say --mesh {' or --mesh '.join(directories)}")
    raise UsageError("no agent here says where the mesh state is: say --mesh DIR")
