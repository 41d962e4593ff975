"""The command: `python -m bench.authority`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.authority.clients import Outcome, run
from bench.authority.day import simulate
from bench.authority.fleet import Fleet, make_fleet, shares
from bench.authority.report import terminal_report
from bench.authority.running import cpu_seconds, peak_mb, running_service
from bench.build import BUILD
from bench.errors import BenchError
from bench.machine import describe_machine


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 when something could not be measured."""
    options = _parser().parse_args(argv)
    nodes, identities = (50, 20) if options.quick else (options.nodes, options.identities)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory = Path(tempfile.mkdtemp(prefix="nodeseal-bench-"))
    try:
        result: dict[str, Any] = {"machine": describe_machine((), None)}
        _say(f"making {nodes * identities:,} keys")
        fleet = make_fleet(directory, nodes, identities)
        with running_service(fleet) as (pid, port):
            _say("starting the fleet")
            load = os.getloadavg()[0]
            result["start"] = measure_start(fleet, port, pid, options.clients) | {"load_before": load}
        _say("a day of renewals")
        day = simulate(50_000)
        result["day"] = {"workloads": 50_000, "renewals": day.renewals, "mean": day.mean, "peak": day.peak}
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{terminal_report(result)}\n\n{options.output}")
    return 0


def measure_start(fleet: Fleet, port: int, pid: int, clients: int) -> dict[str, Any]:
    """All nodes start at once. Raises BenchError when not all certificates came."""
    context = multiprocessing.get_context("fork")
    processes, ends = [], []
    for part in shares(fleet.nodes, clients):
        ours, theirs = context.Pipe()
        process = context.Process(target=run, args=(part, port, theirs), daemon=True)
        process.start()
        processes.append(process)
        ends.append(ours)
    for end in ends:
        end.recv()
    before = cpu_seconds(pid)
    for end in ends:
        end.send(None)
    outcomes = [_outcome(end) for end in ends]
    for process in processes:
        process.join()
    wanted = sum(len(node.requests) for node in fleet.nodes)
    came = sum(one.certificates for one in outcomes)
    if came != wanted:
        raise BenchError(f"{came:,} of {wanted:,} certificates came")
    seconds = max(one.last for one in outcomes) - min(one.first for one in outcomes)
    waits = sorted(wait for one in outcomes for wait in one.waits)
    refused: Counter[str] = sum((one.refused for one in outcomes), Counter())
    cpu = cpu_seconds(pid) - before
    return {
        "nodes": len(fleet.nodes),
        "certificates": came,
        "connections": sum(one.connections for one in outcomes),
        "seconds": seconds,
        "per_second": came / seconds,
        "wait_p50": waits[len(waits) // 2],
        "wait_p99": waits[len(waits) * 99 // 100],
        "wait_longest": waits[-1],
        "refused": dict(refused),
        "service_cpu_ms_each": cpu / came * 1000,
        "clients_cpu_ms_each": sum(one.cpu for one in outcomes) / came * 1000,
        "service_peak_mb": peak_mb(pid),
        "database_mb": sum(path.stat().st_size for path in (fleet.directory / "state").glob("issued.db*")) / 1e6,
    }


def _outcome(end: Connection) -> Outcome:
    try:
        found: Outcome = end.recv()
    except EOFError:
        raise BenchError("a client ended before it was done") from None
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.authority",
        description="Measures `nodeseal ca serve` when all nodes of a fleet start at once, and simulates a day of "
        "renewals.",
    )
    parser.add_argument("--quick", action="store_true", help="50 nodes with 20 identities")
    parser.add_argument("--nodes", type=int, default=1000, metavar="N", help="default: %(default)s")
    parser.add_argument("--identities", type=int, default=50, metavar="N", help="of each node; default: %(default)s")
    parser.add_argument("--clients", type=int, default=2, metavar="N", help="processes of nodes; default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=BUILD / "authority.json", metavar="FILE", help="default: %(default)s"
    )
    return parser


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
