"""`nodeseal lab mode`."""

from __future__ import annotations

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.options import output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.progress import waiting
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import LabMode
from nodeseal_lab.plan import NAMESPACE


@click.command("mode", cls=Command)
@name_option()
@click.argument("pod", metavar="POD", help="whose")
@click.argument("mode", type=click.Choice(("permissive", "strict")), help="with plaintext, or without")
@output_option
@reporting
def command(name: str, pod: str, mode: str, output: str) -> int:
    """Sets whether a pod accepts plaintext from those not enrolled."""
    from nodeseal_lab.lab import Lab

    with waiting(f"making {pod} {mode}"):
        Lab.open(name).set_mode(pod, mode)
    if output == "json":
        print_json(LabMode(name=pod, mode=mode))
    else:
        print(f"{NAMESPACE}/{pod} is {mode}")
    return 0
