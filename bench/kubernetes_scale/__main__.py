"""The command: `python -m bench.kubernetes_scale`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from bench.build import BUILD
from bench.errors import BenchError
from bench.kubernetes_scale.report import draw, table
from bench.kubernetes_scale.sizes import QUICK, Sizes
from bench.machine import describe_machine
from nodeseal_lab.errors import LabError
from nodeseal_lab.interruption import signals_interrupt
from nodeseal_lab.lab import require_root

_MEANT = {
    "nodes": "of the cluster, the two real ones included",
    "pods": "of all nodes that are not real",
    "services": "that all pods are divided among, unevenly",
    "rate": "pods that come or go, a second",
    "seconds": "for how long",
    "plain": "the part of the services whose pods are not enrolled",
    "keys": "connections that the measured node holds, each to another destination",
    "own": "pods of the measured node",
    "probes": "new pods that are dialled, at most",
    "twin": "seconds of the same without agents; 0: none",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 when something could not be measured."""
    options = _parser().parse_args(argv)
    try:
        require_root("the bench")
        sizes = read_sizes(options)
        with signals_interrupt(), tempfile.TemporaryDirectory(prefix="nodeseal-scale-") as directory:
            result = measure(Path(directory), sizes)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
        draw(result, options.output.with_suffix(".png"))
        print(f"{table(result)}\n\n{options.output}")
    except (BenchError, LabError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def measure(directory: Path, sizes: Sizes) -> dict[str, Any]:
    """Everything. Raises BenchError."""
    from bench.kubernetes_scale.scene import new_scene  # needs pytest

    result: dict[str, Any] = {"sizes": asdict(sizes), "machine": describe_machine((), None)}
    with new_scene(directory, sizes, _say) as scene:
        _say("filling the API server")
        result["filled"] = scene.fill()
        _say("starting the agents")
        result["start"] = scene.agents()
        _say(f"  from nothing {result['start']['cold_s']:.1f} s, from what was saved {result['start']['warm_s']:.1f} s")
        result["keys"] = scene.hold()
        _say(f"pods come and go; {result['keys']} connections are held")
        result["churn"] = scene.churn(sizes.seconds, with_agents=True)
        if sizes.twin:
            _say("the same without agents")
            scene.stop_agents()
            result["twin"] = scene.churn(sizes.twin, with_agents=False)
    return result


def read_sizes(options: argparse.Namespace) -> Sizes:
    """Of a run. Raises BenchError for what cannot be."""
    given = {one.name: value for one in fields(Sizes) if (value := getattr(options, one.name)) is not None}
    sizes = replace(QUICK if options.quick else Sizes(), **given)
    if sizes.nodes < 5:
        raise BenchError(f"--nodes {sizes.nodes}: expected at least 5")
    if sizes.pods < sizes.services:
        raise BenchError(f"--pods {sizes.pods}: expected one for each of the {sizes.services} services at least")
    if not 1 <= sizes.own <= 60 or not 1 <= sizes.probes <= 60:
        raise BenchError(f"--own {sizes.own} --probes {sizes.probes}: expected 1 to 60, which a played node can have")
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kubernetes_scale",
        description="Measures an agent in a large cluster that is simulated on a real API server, in network "
        "namespaces of its own.",
    )
    parser.add_argument("--quick", action="store_true", help="50 nodes, in under a minute")
    for one in fields(Sizes):
        kind = type(one.default)
        parser.add_argument(
            f"--{one.name}", type=kind, metavar="N", help=f"{_MEANT[one.name]} (default {one.default:g})"
        )
    parser.add_argument(
        "--output", type=Path, default=BUILD / "kubernetes-scale.json", metavar="FILE", help="default: %(default)s"
    )
    return parser


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
