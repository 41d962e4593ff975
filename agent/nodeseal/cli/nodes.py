"""Which nodes of this machine a command is about, and asking their agents."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeseal.agent import rundir
from nodeseal.agent.client import AgentError, ask

ENVIRONMENT = "NODESEAL_RUN_DIR"
DEFAULT = Path("/run/nodeseal")
LABS = Path("/run/nodeseal-lab")


@dataclass(frozen=True, slots=True)
class Answers:
    """The agents' answers in the order of their nodes, and one line for each that did not answer.

    Each answer carries its "run_dir", and under "node" the node's name, with the lab's before it ("lab/node1") when the
    nodes of several labs are there.
    """

    answers: list[dict[str, Any]]
    errors: list[str]

    def report_errors(self) -> int:
        """Prints the errors; the exit status."""
        for error in self.errors:
            print(f"nodeseal: {error}", file=sys.stderr)
        return 1 if self.errors else 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """--run-dir and -o, as every command about running nodes has them."""
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help=f"the node's run directory (environment {ENVIRONMENT}); default: {DEFAULT}, or the nodes of a running lab",
    )
    add_output_option(parser)


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """-o table or -o json."""
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")


def run_directories(given: Path | None) -> list[Path]:
    """The run directories that a command is about; at least one."""
    if given is not None:
        return [given.absolute()]
    if named := os.environ.get(ENVIRONMENT):
        return [Path(named).absolute()]
    if rundir.has_node(DEFAULT):
        return [DEFAULT]
    labs = sorted(path.parent for path in LABS.glob("*/*/agent.yaml"))
    return [path for path in labs if rundir.has_node(path)] or [DEFAULT]


def ask_all(directories: list[Path], operation: str) -> Answers:
    """Asks every node's agent."""
    answers, errors = [], []
    several_labs = len({directory.parent for directory in directories}) > 1
    for directory in directories:
        try:
            answer = ask(directory, operation)
            if several_labs:
                answer["node"] = f"{directory.parent.name}/{answer['node']}"
            answers.append({**answer, "run_dir": str(directory)})
        except AgentError as error:
            errors.append(str(error))
    return Answers(answers, errors)
