"""`nodeseal lab demo`."""

from __future__ import annotations

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command


@click.command("demo", cls=Command)
@name_option("demo")
@click.option("--ipv6", is_flag=True, help="All of it over IPv6.")
@output_option
@reporting
def command(name: str, ipv6: bool, output: str) -> int:
    """Shows the main job in under a minute, every claim measured."""
    from nodeseal_lab.demo.run import run_demo

    return run_demo(name, as_json=output == "json", ipv6=ipv6)
