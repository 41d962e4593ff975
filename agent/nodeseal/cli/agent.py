"""`nodeseal agent`: the agent of a node."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.options import PATH
from nodeseal.cli.tree import Command


@click.command("agent", cls=Command)
@click.option("--config", type=PATH, required=True, metavar="FILE", help="The configuration, see docs/.")
def command(config: Path) -> int:
    """Runs the agent of a node."""
    from nodeseal.daemon.errors import StartError
    from nodeseal.daemon.main import run

    try:
        return run(config)
    except StartError as error:
        raise CommandError(str(error)) from None
