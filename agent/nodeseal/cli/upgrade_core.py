"""`nodeseal upgrade-core`: a new core takes over, and no connection is cut."""

from __future__ import annotations

from pathlib import Path

import click
from msgspec.structs import asdict

from nodeseal.api.client import ask
from nodeseal.cli import nodes
from nodeseal.cli.output import print_json
from nodeseal.cli.tree import Command
from nodeseal.contracts.api import UPGRADE_CORE
from nodeseal.contracts.output import NodeUpgrade, NodeUpgrades

_PATIENCE_S = 120.0


@click.command("upgrade-core", cls=Command)
@nodes.changing_options
def command(run_dir: Path | None, everything: bool, output: str) -> int:
    """Starts a core from what is installed now, with the agent's present options, hands it all workloads, and lets the
    one before finish its connections: it ends by itself with the last one. Returns when the new core serves. 'nodeseal
    status' shows the cores that are still finishing."""
    directories = nodes.nodes_to_change("upgrade-core", run_dir, everything=everything)
    found = nodes.ask_all(directories, lambda path: ask(path, UPGRADE_CORE, seconds=_PATIENCE_S))
    upgrades = [NodeUpgrade(**asdict(one.says) | {"node": one.node, "run_dir": one.run_dir}) for one in found.answers]
    if output == "json":
        print_json(NodeUpgrades(nodes=upgrades, errors=found.errors))
    for upgrade in upgrades if output != "json" else ():
        before, count = upgrade.before, upgrade.workloads
        print(
            f"node {upgrade.node}: core {upgrade.version}, generation {upgrade.generation} (pid {upgrade.pid}) "
            f"has {count} workload{'s' if count != 1 else ''};\n"
            f"generation {before.generation} (pid {before.pid}) finishes its connections"
        )
    return found.report_errors()
