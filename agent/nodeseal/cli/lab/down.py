"""`nodeseal lab down`."""

from __future__ import annotations

import sys

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.options import output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.progress import waiting
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import LabGone


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
        namespaces, processes, failures = map(list, (report.namespaces, report.processes, report.failures))
        print_json(LabGone(namespaces=namespaces, processes=processes, failures=failures))
    elif report.namespaces or report.processes:
        print(f"lab '{name}': {len(report.processes)} processes ended, {len(report.namespaces)} namespaces removed")
    elif not report.failures:
        print(f"lab '{name}': nothing to remove")
    for failure in report.failures:
        print(f"nodeseal: {failure}", file=sys.stderr)
    return 1 if report.failures else 0
