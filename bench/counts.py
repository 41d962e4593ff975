"""Figures of the guard: instructions, system calls and allocations per unit, recorded ones, and what changed.

Pure but for reading and writing the file of recorded figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.tables import aligned

LIMIT = 0.05
"""How far a figure may rise over the recorded one."""
_LIBRARY_LIMIT = 0.01
"""What a library's rise must also come to, of all instructions, to be told: some are used so little."""
_NOTHING = 0.02
"""Calls and allocations per unit below which a change is none: the ends of the counted stretch."""

CHECKED = {
    "total": "instructions in all",
    "own": "instructions of our own code",
    "openssl": "instructions of OpenSSL",
    "nghttp2": "instructions of nghttp2",
    "libc": "instructions of the C library (copies, allocations)",
    "system_calls": "system calls",
    "allocations": "allocations",
}
"""The figures that may not rise, in words. Libraries are checked too, because it is our code that calls them: one copy
more of every byte is a fifth more of the C library's instructions, and a hundredth more of all."""


@dataclass(frozen=True, slots=True)
class Counts:
    """One load's figures, each per unit, of both ends together."""

    unit: str
    total: float
    own: float
    openssl: float
    nghttp2: float
    libc: float
    other: float
    allocations: float
    calls: Mapping[str, float]  # system calls by name

    @property
    def system_calls(self) -> float:
        return round(sum(self.calls.values()), 3)


@dataclass(frozen=True, slots=True)
class Change:
    """A checked figure that moved by more than LIMIT; `details` says more of it, or is empty."""

    load: str
    figure: str
    unit: str
    recorded: float
    now: float
    details: str = ""

    @property
    def rose(self) -> bool:
        return self.now > self.recorded

    def __str__(self) -> str:
        share = f" ({abs(self.now / self.recorded - 1):.1%})" if self.recorded else ""
        return (
            f"{self.load}: {CHECKED[self.figure]} per {self.unit} {'rose' if self.rose else 'fell'} "
            f"from {number(self.recorded)} to {number(self.now)}{share}{self.details}"
        )


@dataclass(frozen=True, slots=True)
class Record:
    """The file of recorded figures: what they were counted with, and the loads' figures."""

    machine: str
    versions: Mapping[str, str]
    loads: Mapping[str, Counts]


def per_unit(unit: str, units: int, parts: Mapping[str, int], calls: Mapping[str, int], allocations: int) -> Counts:
    """The figures of a load in which `units` units were counted; instructions in whole numbers."""
    return Counts(
        unit=unit,
        total=round(sum(parts.values()) / units),
        **{part: round(count / units) for part, count in parts.items()},
        allocations=round(allocations / units, 3),
        calls={name: round(count / units, 3) for name, count in calls.items()},
    )


def changes(recorded: Mapping[str, Counts], now: Mapping[str, Counts]) -> list[Change]:
    """What moved by more than LIMIT, either way; a library's part also by _LIBRARY_LIMIT of all instructions. A load
    that is not recorded has no changes."""
    moved = []
    for load, counts in now.items():
        if load not in recorded:
            continue
        for figure in CHECKED:
            before, after = getattr(recorded[load], figure), getattr(counts, figure)
            least = _LIBRARY_LIMIT * recorded[load].total if figure in ("openssl", "nghttp2", "libc") else _NOTHING
            if abs(after - before) > max(LIMIT * before, least):
                details = _calls_changed(recorded[load].calls, counts.calls) if figure == "system_calls" else ""
                moved.append(Change(load, figure, counts.unit, before, after, details))
    return moved


def _calls_changed(before: Mapping[str, float], now: Mapping[str, float]) -> str:
    names = (name for name in sorted({*before, *now}) if abs(now.get(name, 0) - before.get(name, 0)) > _NOTHING)
    told = (f"{name} {number(before.get(name, 0))} to {number(now.get(name, 0))}" for name in names)
    return f": {', '.join(told)}"


def differences(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What was counted with other versions, as in "OpenSSL 3.0.22 (here 3.5.1)"; "" when none differs."""
    names = [name for name in recorded if recorded[name] != here.get(name)]
    return ", ".join(f"{name} {recorded[name]} (here {here.get(name, 'none')})" for name in names)


def table(recorded: Mapping[str, Counts], now: Mapping[str, Counts]) -> str:
    """The figures per unit, with their changes, and where the instructions went."""
    heads = ["load", "per", "instructions", "recorded", "", "own", "", "OpenSSL", "nghttp2", "libc", "other"]
    rows = [[*heads, "system calls", "", "allocations", ""]]
    for load, counts in now.items():
        before = recorded.get(load)
        changed = {figure: _percent(before, counts, figure) for figure in CHECKED}
        rows.append([
            load, counts.unit, number(counts.total), number(before.total) if before else "-", changed["total"],
            number(counts.own), changed["own"],
            *(f"{getattr(counts, part) / counts.total:.0%}" for part in ("openssl", "nghttp2", "libc", "other")),
            number(counts.system_calls), changed["system_calls"],
            number(counts.allocations), changed["allocations"],
        ])  # fmt: skip
    return aligned(rows, left=2)


def number(value: float) -> str:
    """Thousands with commas; small numbers with two decimals."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def read_record(path: Path) -> Record:
    """Raises BenchError when the file is missing or is none of these."""
    try:
        content = json.loads(path.read_text())
        loads = {name: Counts(**counts) for name, counts in content["loads"].items()}
        return Record(str(content["machine"]), dict(content["versions"]), loads)
    except FileNotFoundError:
        raise BenchError(f"{path} is missing: record the figures with --record") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{path} holds no figures of this guard ({error}): write it anew with --record") from None


def write_record(path: Path, record: Record) -> None:
    """Raises OSError."""
    loads = {name: asdict(counts) for name, counts in record.loads.items()}
    content: dict[str, Any] = {"machine": record.machine, "versions": dict(record.versions), "loads": loads}
    path.write_text(json.dumps(content, indent=1) + "\n")


def not_recorded(recorded: Iterable[str], now: Iterable[str]) -> list[str]:
    """Loads that have no recorded figures."""
    return sorted(set(now).difference(recorded))


def _percent(before: Counts | None, now: Counts, figure: str) -> str:
    old = getattr(before, figure) if before else 0.0
    return f"{getattr(now, figure) / old - 1:+.1%}" if old else "-"
