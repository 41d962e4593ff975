"""`nodeseal mesh check`: whether nodes would take a mesh state, before they see it. No agent and no root."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import MeshCheck, MeshProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nodeseal.documents.document import Problem
    from nodeseal.mesh.model import Mesh


@click.command("check", cls=Command)
@click.argument("directory", metavar="DIR", type=PATH, help="with the *.yaml, *.yml and *.json files")
@output_option
def command(directory: Path, output: str) -> int:
    """Reads the mesh state in DIR as a node does, and prints everything that is wrong, each with its file, line and
    field. The exit status is 0 when nothing is, 1 otherwise."""
    from nodeseal.documents.document import shown_path
    from nodeseal.sources.directory.source import examine

    mesh, problems = examine(directory)
    shown = shown_path(directory)
    if mesh is not None:
        problems = [*problems, *_claimed_twice(mesh, shown)]
    if output == "json":
        found = [MeshProblem(**asdict(problem)) for problem in problems]
        print_json(MeshCheck(ok=not problems, problems=found, **_contents(mesh)))
        return 1 if problems else 0
    for problem in problems:
        # As a compiler does, so that an editor finds the place.
        print(problem if problem.file == shown else f"{shown.rstrip('/')}/{problem}")
    if not problems:
        counts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _contents(mesh).items())
        print(f"{shown}: good: {counts}")
    return 1 if problems else 0


def _claimed_twice(mesh: Mesh, shown: str) -> Iterator[Problem]:
    """What nodes take, and what is a mistake all the same."""
    from nodeseal.documents.document import Problem

    for address, claimants in mesh.contested.items():
        found = f"{address} of {' and of '.join(str(one.key) for one in claimants)}: it counts for neither"
        yield Problem(shown, 0, "workloads", "an address used once", found)


def _contents(mesh: Mesh | None) -> dict[str, Any]:
    if mesh is None:
        return {}
    nodes = {workload.node for workload in mesh.workloads.values()}
    return {
        "trust_domain": mesh.trust_domain,
        "nodes": len(nodes),
        "workloads": len(mesh.workloads),
        "services": len(mesh.services),
    }
