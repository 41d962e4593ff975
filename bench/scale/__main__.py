"""The command: `python -m bench.scale`."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.bed import MAX_PODS, new_bed, remove_old_beds
from bench.build import BUILD, build_programs
from bench.errors import BenchError
from bench.machine import describe_machine
from bench.scale.parts import Sizes, measure_enrolment, measure_mesh, measure_rest
from bench.scale.report import terminal_report
from bench.scale.scene import new_scene
from nodeseal_lab.errors import LabError
from nodeseal_lab.interruption import signals_interrupt
from nodeseal_lab.lab import require_root

PARTS = ("enrol", "rest", "mesh")
_QUICK = Sizes(workloads=20, connections=500, tunnels=40, mesh=5_000, enrol=10, seconds=2.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 when something could not be measured."""
    options = _parser().parse_args(argv)
    try:
        require_root("the bench")
        sizes, parts = read_sizes(options)
        # The connections' near ends are in this very process.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        programs = build_programs()
        remove_old_beds()
        result: dict[str, Any] = {"settings": asdict(sizes), "complete": True}
        try:
            with (
                signals_interrupt(),
                new_bed(programs, pods_per_node=(sizes.workloads, sizes.servers)) as bed,
                new_scene(bed) as scene,
            ):
                result["machine"] = describe_machine((), bed.setting("shipper", "ipv4/tcp_congestion_control"))
                if "enrol" in parts:
                    _say("enrolling")
                    result["enrol"] = measure_enrolment(scene, sizes)
                if "rest" in parts:
                    _say("at rest")
                    result["rest"] = measure_rest(scene, sizes, _say)
                if "mesh" in parts:
                    _say("mesh state")
                    if "rest" not in parts:
                        scene.want({scene.clients[0].name, scene.servers[0].name})
                        scene.wait_enrolled({scene.clients[0].name, scene.servers[0].name})
                    result["mesh"] = measure_mesh(scene, sizes, _say)
        except KeyboardInterrupt:
            result["complete"] = False
            _say("interrupted: the figures are those of what was finished")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{terminal_report(result)}\n\n{options.output}")
    except (BenchError, LabError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0 if result["complete"] else 1


def read_sizes(options: argparse.Namespace) -> tuple[Sizes, tuple[str, ...]]:
    """The sizes and the parts of a run. Raises BenchError for what cannot be."""
    base = _QUICK if options.quick else Sizes()
    given = {name: value for name in asdict(base) if (value := getattr(options, name, None)) is not None}
    sizes = Sizes(**(asdict(base) | given))
    parts = tuple(options.only.split(",")) if options.only else PARTS
    for part in parts:
        if part not in PARTS:
            raise BenchError(f"--only {part}: there is no such part; there are {', '.join(PARTS)}")
    if not 1 <= sizes.workloads <= MAX_PODS:
        raise BenchError(f"--workloads {sizes.workloads}: expected 1 to {MAX_PODS}")
    if not 1 <= sizes.enrol <= sizes.workloads:
        raise BenchError(f"--enrol {sizes.enrol}: expected 1 to {sizes.workloads}, the workloads that there are")
    if not 1 <= sizes.servers <= MAX_PODS:
        raise BenchError(f"--tunnels {sizes.tunnels}: expected at most {MAX_PODS} for each of the workloads")
    return sizes, parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale",
        description="Measures one node with many workloads and connections, and with a large mesh state, in network "
        "namespaces of its own.",
    )
    parser.add_argument("--quick", action="store_true", help="small numbers, in under a minute")
    parser.add_argument("--only", metavar="PARTS", help=f"these parts alone, separated by commas: {', '.join(PARTS)}")
    for name, what in (
        ("workloads", "enrolled on the first node"),
        ("connections", "open and idle"),
        ("tunnels", "that they go through: pairs of workloads"),
        ("mesh", "workloads in the large mesh state"),
        ("enrol", "workloads that are enrolled at once"),
    ):
        default = getattr(Sizes(), name)
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default {default})")
    parser.add_argument(
        "--output", type=Path, default=BUILD / "scale.json", metavar="FILE", help="default: %(default)s"
    )
    return parser


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
