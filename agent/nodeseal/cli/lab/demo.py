"""`nodeseal lab demo`."""

from __future__ import annotations

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command


@click.command("demo", cls=Command)
@click.argument(
    "story",
    metavar="[STORY]",
    type=click.Choice(("enrolment", "identity")),
    default="enrolment",
    help="enrolment, or identity",
)
@name_option("demo")
@click.option("--ipv6", is_flag=True, help="All of it over IPv6.")
@output_option
@reporting
def command(story: str, name: str, ipv6: bool, output: str) -> int:
    """Shows what nodeseal does, every claim measured. STORY is enrolment, the main job, in under a minute, or identity:
    who has which certificate, a new root, a revocation and a second trust domain, in a minute and a half."""
    from nodeseal_lab.demo.run import run_demo

    return run_demo(name, story=story, as_json=output == "json", ipv6=ipv6)
