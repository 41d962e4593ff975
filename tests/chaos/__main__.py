"""The command: `python -m chaos`, with tests/ in PYTHONPATH; `make chaos` calls it."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.errors import ChaosError
from chaos.leaks import SETTINGS as LEAK_SETTINGS
from chaos.leaks import Leaks
from chaos.report import Report, to_json, to_text
from chaos.run import SETTINGS, ChaosRun, Options, new_lab
from nodeseal_lab.errors import LabError
from nodeseal_lab.interruption import signals_interrupt
from nodeseal_lab.lab import LAB_ROOT, require_root, take_down
from support.options import BACKEND, BACKENDS

BUILD = Path(__file__).resolve().parents[2] / "build" / "chaos"
PARTS = ("chaos", "leaks")
LAB_NAME = "chaos"
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when all that was promised held, 1 when not, 130 when it was interrupted."""
    options = _parser().parse_args(argv)
    report = Report(options.seed, options.minutes * 60, complete=False)
    status = 1
    try:
        require_root("make chaos")
        parts = _parts(options.only)
        os.environ[BACKEND.environment] = options.backend
        with signals_interrupt():
            _remove_old(options.name)
            report = _run(options, parts, report)
        status = 0 if report.passed else 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (ChaosError, LabError) as error:
        print(f"chaos: {error}", file=sys.stderr)
    print(json.dumps(to_json(report), indent=2) if options.output == "json" else to_text(report))
    return status


def _run(options: argparse.Namespace, parts: Sequence[str], report: Report) -> Report:
    """The parts, one after the other; the report of what was done also when one of them cannot be made."""
    log = options.log or BUILD / f"events-{options.seed}.log"
    if "chaos" in parts:
        run = ChaosRun(Options(options.seed, options.minutes, options.connections, log))
        report = run.report
        _say(f"seed {options.seed}, {options.minutes:g} minutes, {options.connections} connections, events in {log}")
        try:
            with new_lab(options.name, SETTINGS) as lab:
                run.run(lab)
        except (KeyboardInterrupt, ChaosError, LabError):
            print(to_text(report), file=sys.stderr)
            raise
    if "leaks" in parts:
        _say(f"{options.rounds} rounds of enrolment, {options.generations} core generations")
        report.complete = False
        with new_lab(options.name, LEAK_SETTINGS) as lab:
            Leaks(lab, report).run(options.rounds, options.generations)
        report.complete = True
    return report


def _remove_old(name: str) -> None:
    """What a run that was killed has left."""
    if (LAB_ROOT / name).exists():
        take_down(name)


def _parts(text: str) -> Sequence[str]:
    parts = text.split(",")
    for part in parts:
        if part not in PARTS:
            raise ChaosError(f"--only {part}: there is no such part; there are {', '.join(PARTS)}")
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Restarts, upgrades, crashes, enrolments and a bad link, mixed at random under load, in network "
        "namespaces of its own.",
    )
    seed = secrets.randbelow(1_000_000)
    parser.add_argument("--seed", type=int, default=seed, metavar="N", help="what happens when (default: a new one)")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="of chaos (default %(default)g)")
    parser.add_argument("--connections", type=int, default=1000, metavar="N", help="long-lived (default %(default)d)")
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="of enrolment (default %(default)d)")
    parser.add_argument("--generations", type=int, default=20, metavar="N", help="of cores (default %(default)d)")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help="chaos, leaks (default: both)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="of the events (default: build/chaos/events-SEED.log)")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=BACKEND.asked().value,
        help="what captures (default %(default)s)",
    )
    parser.add_argument("--name", default=LAB_NAME, metavar="NAME", help="the lab's name (default %(default)s)")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    return parser


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
