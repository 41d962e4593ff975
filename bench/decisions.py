"""What a new flow waits for a decision: `python -m bench.decisions`.

A core process is started as the agent starts it, in a network namespace of its own, and given a mesh. Connections are
dialled to its outbound listener at addresses of 127.0.0.0/8, which stand for services, so that each address is a
question of its own. The workload has no certificate: a decided flow ends at once, and nothing but decisions is timed.
The figures of a question are the core's own (decision_p50_ns and decision_p99_ns of its stats): from the worker's
question to the worker's having the answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from bench.build import BUILD, CHECKOUT
from bench.errors import BenchError
from bench.lone import LoneCore, lone_core, lone_namespace
from nodeseal.cores.client import CoreClient
from nodeseal.mesh.model import Mesh, Mode, Phase, Service, ServicePort, Workload, WorkloadName
from nodeseal.splice.native import LISTEN_OUTBOUND
from nodeseal_lab.errors import LabError

MESH_SIZES = (2, 50_000)
QUESTIONS = 2000
FLOWS = 1000
KEYS = (1, 1000, 10_000)
_DOMAIN = "example.org"
_PORT = 8080
_SETTLE_SECONDS = 0.5  # the core's memory is being given back, and the like
_LOOKUP_SOURCES = ("decisions/decisions.c", "base/latencies.c")
_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.decisions", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="the core's worker threads (default 1)")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help=f"asked one by one (default {QUESTIONS})")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    try:
        with lone_namespace():
            figures = measure(options.workers, options.questions)
    except (BenchError, LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=1) if options.output == "json" else markdown(figures))
    return 0


def measure(workers: int, questions: int) -> dict[str, Any]:
    """All figures; times in microseconds, those of look-ups in nanoseconds."""
    figures: dict[str, Any] = {"workers": workers, "questions": questions, "flows": FLOWS, "meshes": {}}
    for size in MESH_SIZES:
        mesh = _mesh(size, max(questions, FLOWS))
        with _site(mesh, workers) as site:
            for number in range(questions):
                site.dial([number])
            one_by_one = site.figures()
        with _site(mesh, workers) as site:
            site.dial(range(FLOWS))
            at_once = site.figures()
        with _site(mesh, workers) as site:
            site.dial([7] * FLOWS)
            same = site.figures()
        figures["meshes"][str(size)] = {"one_by_one": one_by_one, "at_once": at_once, "same_key": same}
    figures["lookup_ns"] = {str(keys): _lookup_ns(keys) for keys in KEYS}
    return figures


def markdown(figures: dict[str, Any]) -> str:
    """The figures as they stand in docs/performance.md."""
    flows, questions = figures["flows"], figures["questions"]
    lines = ["| a question to Python and back | mesh | median | p99 | questions |", "|---|---|---|---|---|"]
    names = {
        "one_by_one": f"{questions} keys, one after the other",
        "at_once": f"{flows} keys at once",
        "same_key": f"{flows} flows of one key at once",
    }
    for size, loads in figures["meshes"].items():
        for name, row in loads.items():
            lines.append(
                f"| {names[name]} | {int(size):,} workloads | {row['p50_us']:.0f} µs | {row['p99_us']:.0f} µs | "
                f"{row['questions']} |"
            )
    cached = ", ".join(f"{ns:.0f} ns with {int(keys):,} keys" for keys, ns in figures["lookup_ns"].items())
    return "\n".join([*lines, "", f"A cached decision: {cached}."])


def _mesh(size: int, services: int) -> Mesh:
    """`size` enrolled workloads and `services` services of two endpoints each."""
    workloads = [
        Workload(
            WorkloadName("default", f"w{i}"),
            f"w{i}",
            "node1",
            (IPv4Address((10 << 24) + 256 + i),),
            None,
            True,
            Mode.PERMISSIVE,
            Phase.ENROLLED,
        )
        for i in range(size)
    ]
    return Mesh.build(
        _DOMAIN,
        workloads,
        [
            Service(
                WorkloadName("default", f"s{i}"),
                (IPv4Address(_service(i)),),
                (ServicePort(_PORT, _PORT),),
                (workloads[2 * i % size].key, workloads[(2 * i + 1) % size].key),
            )
            for i in range(services)
        ],
    )


def _service(number: int) -> str:
    return f"127.1.{number // 250}.{number % 250 + 1}"


class _Site:
    """A core with one workload whose outbound listener is dialled."""

    def __init__(self, core: LoneCore) -> None:
        self._core = core

    def dial(self, numbers: Iterable[int]) -> None:
        """Flows to services, all dialled before the first end is waited for."""
        connections = [_connect(number) for number in numbers]
        for connection in connections:
            _expect_reset(connection)

    def figures(self) -> dict[str, float]:
        """{p50_us, p99_us, questions}."""
        core, _workloads = self._core.ask(CoreClient.stats)
        return {
            "p50_us": core.decision_p50_ns / 1000,
            "p99_us": core.decision_p99_ns / 1000,
            "questions": core.questions,
        }


@contextlib.contextmanager
def _site(mesh: Mesh, workers: int) -> Iterator[_Site]:
    """A new core with a mesh, ended with the block."""
    source = next(iter(mesh.workloads.values()))
    with lone_core(workers, _DOMAIN) as core, socket.create_server(("0.0.0.0", _PORT), backlog=FLOWS) as listener:
        core.ask(CoreClient.mesh, mesh, 1)
        core.add(1, source, _DOMAIN, {LISTEN_OUTBOUND: listener.fileno()})
        time.sleep(_SETTLE_SECONDS)
        yield _Site(core)


def _connect(number: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(_SECONDS)
    with contextlib.suppress(ConnectionResetError):  # it may have ended by now
        connection.connect((_service(number), _PORT))
    return connection


def _expect_reset(connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionResetError):
        if connection.recv(1):
            raise BenchError("a flow without a certificate was answered")


def _lookup_ns(keys: int) -> float:
    """Nanoseconds a look-up of a cached decision. Raises BenchError."""
    program = BUILD / "bench" / "lookups"
    program.parent.mkdir(parents=True, exist_ok=True)
    sources = [CHECKOUT / "bench" / "lookups.c", *(CHECKOUT / "cext" / "src" / name for name in _LOOKUP_SOURCES)]
    includes = [f"-I{CHECKOUT / 'cext' / directory}" for directory in ("include", "src")]
    # The options that cext/build_core.py builds the core with.
    command = ["gcc", "-std=gnu11", "-O2", "-fno-strict-aliasing", *includes, *map(str, sources), "-o", str(program)]
    for argv in (command, [str(program), str(keys)]):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{argv[0]} failed: {done.stderr.strip()}")
    return float(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
