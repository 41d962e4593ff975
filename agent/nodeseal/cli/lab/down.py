"""`nodeseal lab down`."""

from __future__ import annotations

import json
import sys

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.options import output_option
from nodeseal.cli.progress import waiting
from nodeseal.cli.tree import Command


@click.command("down", cls=Command)
@name_option()
@output_option
@reporting
def command(name: str, output: str) -> int:
    """Removes a lab, whatever is left of it."""
    from nodeseal_lab.lab import take_down

    with waiting(f"taking down the lab '{name}'"):
        report = take_down(name)
    if output == "json":
        gone = {
            "namespaces": list(report.namespaces),
            "processes": list(report.processes),
            "failures": list(report.failures),
        }
        print(json.dumps(gone, indent=2))
    elif report.namespaces or report.processes:
        print(f"lab '{name}': {len(report.processes)} processes ended, {len(report.namespaces)} namespaces removed")
    elif not report.failures:
        print(f"lab '{name}': nothing to remove")
    for failure in report.failures:
        print(f"nodeseal: {failure}", file=sys.stderr)
    return 1 if report.failures else 0
