"""Which nodes of this machine a command is about, and asking their agents.

One machine may have several, as namespaces (a lab, or a cluster in one VM). Inside the network namespace of some of
them, these are meant.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeseal.agent import rundir
from nodeseal.agent.client import TIMEOUT_S, AgentError, ask

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
        help=f"the node's run directory, or its agent.sock (environment {ENVIRONMENT}); default: the node of this "
        f"network namespace, else {DEFAULT}, or the nodes of a running lab",
    )
    add_output_option(parser)


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """-o table or -o json."""
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")


def run_directories(given: Path | None) -> list[Path]:
    """The run directories that a command is about; at least one."""
    named = os.environ.get(ENVIRONMENT)
    if given is not None or named:
        path = (given or Path(named or "")).absolute()
        return [path.parent if path.name == rundir.AGENT_SOCKET else path]
    default = [DEFAULT] if rundir.has_node(DEFAULT) else []
    labs = [path.parent for path in sorted(LABS.glob("*/*/agent.yaml")) if rundir.has_node(path.parent)]
    here = [path for path in (*default, *labs) if _runs_here(path)]
    return here or default or labs or [DEFAULT]


def _runs_here(run_dir: Path) -> bool:
    """Whether the node's processes are in the network namespace of this command."""
    try:
        own = Path("/proc/self/ns/net").stat().st_ino
        return any(Path(f"/proc/{pid}/ns/net").stat().st_ino == own for pid in rundir.pids(run_dir))
    except OSError:
        return False  # it has just ended, or is not ours to look at


def ask_all(directories: list[Path], operation: str, *, seconds: float = TIMEOUT_S) -> Answers:
    """Asks every node's agent, one after the other, each for at most so many seconds."""
    answers, errors = [], []
    several_labs = len({directory.parent for directory in directories}) > 1
    for directory in directories:
        try:
            answer = ask(directory, operation, seconds=seconds)
            if several_labs:
                answer["node"] = f"{directory.parent.name}/{answer['node']}"
            answers.append({**answer, "run_dir": str(directory)})
        except AgentError as error:
            errors.append(str(error))
    return Answers(answers, errors)
