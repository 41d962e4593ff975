"""`nodeseal lab status`."""

from __future__ import annotations

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.lab.tables import status_tables
from nodeseal.cli.options import output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.tree import Command


@click.command("status", cls=Command)
@name_option()
@output_option
@reporting
def command(name: str, output: str) -> int:
    """Shows what runs: nodes, pods, and which pods are enrolled."""
    from nodeseal_lab.lab import Lab, require_root

    require_root("nodeseal lab status")
    status = Lab.open(name).status()
    if output == "json":
        print_json(status)
    else:
        print(status_tables(status))
    return 0
