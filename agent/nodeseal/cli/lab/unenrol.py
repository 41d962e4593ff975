"""`nodeseal lab unenrol`."""

from __future__ import annotations

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.lab.tables import print_pods
from nodeseal.cli.options import output_option
from nodeseal.cli.progress import waiting
from nodeseal.cli.tree import Command


@click.command("unenrol", cls=Command)
@name_option()
@click.argument("pods", metavar="POD...", nargs=-1, required=True, help="which")
@output_option
@reporting
def command(name: str, pods: tuple[str, ...], output: str) -> int:
    """Un-enrols pods, live; open connections go on."""
    from nodeseal_lab.lab import Lab

    lab = Lab.open(name)
    with waiting(f"un-enrolling {', '.join(pods)}"):
        lab.unenrol(*pods)
    print_pods(lab, pods, output)
    return 0
