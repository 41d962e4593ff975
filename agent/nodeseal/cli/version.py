"""`nodeseal version`."""

from __future__ import annotations

import click

from nodeseal import __version__
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command


@click.command("version", cls=Command)
@output_option
def command(output: str) -> int:
    """Prints the version of this command."""
    if output == "json":
        from nodeseal.cli.output import print_json
        from nodeseal.contracts.output import Version

        print_json(Version(version=__version__))
    else:
        print(f"nodeseal {__version__}")
    return 0
