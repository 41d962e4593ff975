"""`nodeseal version`."""

from __future__ import annotations

import json

import click

from nodeseal import __version__
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command


@click.command("version", cls=Command)
@output_option
def command(output: str) -> int:
    """Prints the version of this command."""
    print(json.dumps({"version": __version__}) if output == "json" else f"nodeseal {__version__}")
    return 0
