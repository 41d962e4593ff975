"""`nodeseal upgrade-core`: a new core takes over, and no connection is cut."""

from __future__ import annotations

import argparse
import json

from nodeseal.cli import nodes

_PATIENCE_S = 120.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `upgrade-core`."""
    parser = subparsers.add_parser(
        "upgrade-core",
        help="replace this node's core by a new one; no connection is cut",
        description="Starts a core from what is installed now, with the agent's present options, hands it all "
        "workloads, and lets the one before finish its connections: it ends by itself with the last one. Returns when "
        "the new core serves. 'nodeseal status' shows the cores that are still finishing.",
    )
    nodes.add_changing_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    found = nodes.ask_all(nodes.nodes_to_change("upgrade-core", args), "upgrade_core", seconds=_PATIENCE_S)
    if args.output == "json":
        answers = [{key: value for key, value in answer.items() if key != "ok"} for answer in found.answers]
        print(json.dumps({"nodes": answers, "errors": found.errors}, indent=2))
    for answer in found.answers if args.output != "json" else ():
        before, count = answer["before"], answer["workloads"]
        print(
            f"node {answer['node']}: core {answer['version']}, generation {answer['generation']} (pid {answer['pid']}) "
            f"has {count} workload{'s' if count != 1 else ''};\n"
            f"generation {before['generation']} (pid {before['pid']}) finishes its connections"
        )
    return found.report_errors()
