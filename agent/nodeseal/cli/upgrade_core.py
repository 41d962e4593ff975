"""`nodeseal upgrade-core`: a new core takes over, and no connection is cut."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nodeseal.cli import nodes
from nodeseal.cli.tree import Command

_PATIENCE_S = 120.0


@click.command("upgrade-core", cls=Command)
@nodes.changing_options
def command(run_dir: Path | None, everything: bool, output: str) -> int:
    """Starts a core from what is installed now, with the agent's present options, hands it all workloads, and lets the
    one before finish its connections: it ends by itself with the last one. Returns when the new core serves. 'nodeseal
    status' shows the cores that are still finishing."""
    directories = nodes.nodes_to_change("upgrade-core", run_dir, everything=everything)
    found = nodes.ask_all(directories, "upgrade_core", seconds=_PATIENCE_S)
    if output == "json":
        answers = [{key: value for key, value in answer.items() if key != "ok"} for answer in found.answers]
        print(json.dumps({"nodes": answers, "errors": found.errors}, indent=2))
    for answer in found.answers if output != "json" else ():
        before, count = answer["before"], answer["workloads"]
        print(
            f"node {answer['node']}: core {answer['version']}, generation {answer['generation']} (pid {answer['pid']}) "
            f"has {count} workload{'s' if count != 1 else ''};\n"
            f"generation {before['generation']} (pid {before['pid']}) finishes its connections"
        )
    return found.report_errors()
