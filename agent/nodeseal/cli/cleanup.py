"""`nodeseal cleanup`: removes every trace of nodeseal from the node."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nodeseal.cli import nodes
from nodeseal.cli.output import print_json
from nodeseal.cli.progress import waiting
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import Cleaned


@click.command("cleanup", cls=Command)
@nodes.changing_options
def command(run_dir: Path | None, everything: bool, output: str) -> int:
    """Ends the agent and the core of the node if they run, withdraws the node's publication, and removes everything
    that capture put in place. Connections through the core end. Harmless when repeated."""
    from nodeseal.daemon.cleanup import CleanupError, cleanup

    removed: list[str] = []
    failed: list[str] = []
    try:
        for directory in nodes.nodes_to_change("cleanup", run_dir, everything=everything):
            with waiting(f"cleaning up {directory}"):
                report = cleanup(directory)
            removed += report.removed
            failed += report.failed
    except CleanupError as error:
        failed.append(str(error))
    if output == "json":
        print_json(Cleaned(removed=removed, failed=failed))
    else:
        for line in removed:
            print(f"removed {line}")
        if not removed and not failed:
            print("nothing to remove")
    for line in failed:
        print(f"nodeseal: {line}", file=sys.stderr)
    return 1 if failed else 0
