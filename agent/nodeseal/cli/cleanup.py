"""`nodeseal cleanup`: removes every trace of nodeseal from the node."""

from __future__ import annotations

import argparse
import json
import sys

from nodeseal.cli import nodes
from nodeseal.cli.progress import waiting


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `cleanup`."""
    parser = subparsers.add_parser(
        "cleanup",
        help="remove every trace on this node, with or without a running agent",
        description="Ends the agent and the core of the node if they run, withdraws the node's publication, and "
        "removes everything that capture put in place. Connections through the core end. Harmless when repeated.",
    )
    nodes.add_changing_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from nodeseal.daemon.cleanup import CleanupError, cleanup

    removed: list[str] = []
    failed: list[str] = []
    try:
        for directory in nodes.nodes_to_change("cleanup", args):
            with waiting(f"cleaning up {directory}"):
                report = cleanup(directory)
            removed += report.removed
            failed += report.failed
    except CleanupError as error:
        failed.append(str(error))
    if args.output == "json":
        print(json.dumps({"removed": removed, "failed": failed}, indent=2))
    else:
        for line in removed:
            print(f"removed {line}")
        if not removed and not failed:
            print("nothing to remove")
    for line in failed:
        print(f"nodeseal: {line}", file=sys.stderr)
    return 1 if failed else 0
