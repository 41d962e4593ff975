"""The command `python -m bench.guard`: against performance regressions, whatever else the machine does.

It counts the instructions that the data path takes per request, per megabyte and per new connection, over a kernel in
memory (bench/instructions), and compares them with the figures recorded in bench/instructions.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.build import BUILD, CHECKOUT, SOURCES, TRAFFIC, build_traffic
from bench.callgrind import Run, check_machine, count_instructions, valgrind_version
from bench.counts import (
    LIMIT,
    Change,
    Counts,
    Record,
    changes,
    differences,
    not_recorded,
    per_unit,
    read_record,
    table,
    write_record,
)
from bench.errors import BenchError

RECORD = SOURCES / "instructions.json"
OUTPUT = BUILD / "guard"


EVENTS_LIMIT = 0.02
"""What a listener to events may cost of our own instructions, as a part of all that the same load takes without one.

Two runs differ by up to 1 % in the C library's instructions, which the comparison with the recorded ones bears."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load of bench/instructions/traffic.c; `units` of them are counted after its warm-up."""

    name: str
    unit: str
    units: int


LOADS = (
    Load("requests_1", "request", 1000),
    Load("requests_64", "request", 3200),
    Load("upload_1", "MB", 16),
    Load("download_1", "MB", 16),
    Load("download_8", "MB", 16),
    Load("connections", "connection", 400),
    Load("watched_connections", "connection", 400),
    Load("plain_requests_1", "request", 2000),
    Load("plain_download_1", "MB", 32),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 when a figure rose or could not be counted."""
    options = _parser().parse_args(argv)
    try:
        check_machine()
        runs = count(build_traffic(OUTPUT), LOADS, OUTPUT)
        here = Record(
            platform.machine(),
            {**runs[LOADS[0].name].said["versions"], "valgrind": valgrind_version()},
            {load.name: counts_of(load, runs[load.name]) for load in LOADS},
        )
        if options.record:
            write_record(RECORD, here)
            print(f"{table({}, here.loads)}\n\nrecorded in {_shown(RECORD)}")
            return 0
        return max(judge(read_record(RECORD), here), judge_listener(here.loads))
    except BenchError as error:
        print(f"guard: {error}", file=sys.stderr)
        return 1


def count(program: Path, loads: Sequence[Load], output: Path) -> Mapping[str, Run]:
    """Each load under callgrind, some at a time: they do not disturb each other's counts. Raises BenchError."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = [_profile(output, load.name) for load in loads]
        runs = pool.map(lambda load, file: count_instructions(program, load.name, load.units, file), loads, files)
        return dict(zip((load.name for load in loads), runs, strict=True))


def counts_of(load: Load, run: Run) -> Counts:
    """The figures of one run."""
    parts = run.profile.parts(f"{TRAFFIC.parent.name}/{TRAFFIC.name}/")
    return per_unit(load.unit, load.units, parts, run.said["system_calls"], run.profile.allocations)


def judge(recorded: Record, here: Record) -> int:
    """Prints the table and what is to be said about it; returns the exit status."""
    comparable = recorded.machine == here.machine
    print(table(recorded.loads if comparable else {}, here.loads))
    if not comparable:
        print(f"\nguard: not compared: the figures were recorded on {recorded.machine}, this is {here.machine}")
        return 0
    other = differences(recorded.versions, here.versions)
    status = 0
    for load in not_recorded(recorded.loads, here.loads):
        print(f"guard: {load}: no figures are recorded; record them: {_command('--record')}", file=sys.stderr)
        status = 1
    for change in changes(recorded.loads, here.loads):
        if change.rose:
            print(failure_line(change, other), file=sys.stderr)
            status = 1
        else:
            print(f"guard: {change}; please record it: {_command('--record')}")
    if other:
        print(f"guard: the figures were recorded with {other}")
    return status


def judge_listener(loads: Mapping[str, Counts]) -> int:
    """Says what a listener to events costs; returns the exit status."""
    alone, watched = (loads[name] for name in ("connections", "watched_connections"))
    cost = (watched.own - alone.own) / alone.total
    line = f"guard: a listener to events costs {cost:+.1%} of a connection's instructions"
    if cost <= EVENTS_LIMIT:
        print(line)
        return 0
    print(f"{line}, more than {EVENTS_LIMIT:.0%}", file=sys.stderr)
    return 1


def failure_line(change: Change, other_versions: str) -> str:
    """What a rise is told by: what, by how much, with which other versions, where to look, how to accept it."""
    versions = f"; recorded with {other_versions}" if other_versions else ""
    return (
        f"guard: {change}, more than {LIMIT:.0%}{versions}. "
        f"See where: callgrind_annotate {_shown(_profile(OUTPUT, change.load))}. To accept it: {_command('--record')}"
    )


def _profile(directory: Path, load: str) -> Path:
    return directory / f"callgrind.{load}.out"


def _command(option: str) -> str:
    return f".venv/bin/python -m bench.guard {option}"


def _shown(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.guard",
        description="Counts the data path's instructions under callgrind and compares them with the recorded ones: "
        f"status 1 when a figure rose by more than {LIMIT:.0%}.",
    )
    parser.add_argument("--record", action="store_true", help="write the figures to bench/instructions.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
