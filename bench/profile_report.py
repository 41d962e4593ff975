"""What a profile says: a table for the terminal, a text for each load, and the stacks of all in speedscope's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.generator import Measured
from bench.stacks import Folded, Frame, core_functions, group_of, group_shares, top_symbols

TOP_SYMBOLS = 25
TOP_CORE_FUNCTIONS = 12

COLUMNS = (
    ("kernel", ("kernel",)),
    ("crypto", ("libcrypto", "libssl")),
    ("h2", ("nghttp2",)),
    ("libc", ("libc",)),
    ("core", ("core",)),
    ("other", ("python", "other")),
)
"""The shares of the summary, with the groups of bench.stacks that they add up."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One load. `cost`: in a word, such as "15.2 us/request". `unit`: what `folded` counts. `notes`: what a reader of
    the picture should know, a line each."""

    load: str
    peer: str
    cost: str
    folded: Folded
    unit: str
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.peer}, {self.load}: {self.cost}, {self.folded.total():,} {self.unit}"

    def shares(self) -> dict[str, float]:
        """By the names of COLUMNS; 0..1."""
        groups = group_shares(self.folded)
        return {name: sum(groups[group] for group in parts) for name, parts in COLUMNS}


def cost_of(measured: Measured) -> str:
    """The CPU time of both proxies for one of what the load consists of; of a mixture, how many CPUs they used."""
    cpu = measured.usage.total_s
    kinds = (
        (measured.requests, 1e6, "us/request"),
        (measured.connections, 1e6, "us/connection"),
        (measured.gigabytes, 1.0, "s/GB"),
    )
    present = [(amount, scale, unit) for amount, scale, unit in kinds if amount]
    if len(present) != 1:
        return f"{cpu / measured.seconds:.2f} CPUs"
    amount, scale, unit = present[0]
    return f"{cpu / amount * scale:.{2 if scale == 1 else 1}f} {unit}"


def terminal_table(profiles: Sequence[Profile]) -> str:
    """One line a load, at most 100 columns."""
    header = f"{'load':<18}{'CPU of both sides':>22}" + "".join(f"{name:>9}" for name, _ in COLUMNS)
    lines = [header]
    for profile in profiles:
        shares = profile.shares()
        line = f"{profile.load:<18}{profile.cost:>22}"
        lines.append(line + "".join(f"{shares[name]:>9.1%}" for name, _ in COLUMNS))
    return "\n".join(lines)


def load_text(profile: Profile) -> str:
    """The shares of the modules, the functions with the most time of their own, and where the core's was spent."""
    total = profile.folded.total()
    lines = [profile.title, *profile.notes, "", "Time by module, each function's own"]
    shares = sorted(group_shares(profile.folded).items(), key=lambda item: -item[1])
    lines += [f"  {share:>6.1%}  {group}" for group, share in shares if share]
    lines += ["", f"The {TOP_SYMBOLS} functions with the most time of their own"]
    for samples, frame, place in top_symbols(profile.folded, TOP_SYMBOLS):
        name = f"{frame.symbol} under {place}" if place else frame.symbol
        lines.append(f"  {samples / total:>6.1%}  {frame.module:<24} {name}")
    functions = core_functions(profile.folded, TOP_CORE_FUNCTIONS)
    if functions:
        lines += ["", "By the core's own functions: all that each did or called outside of the core"]
    for name, samples, callees in functions:
        called = ", ".join(f"{'itself' if callee == '-' else callee} {n / total:.1%}" for callee, n in callees)
        lines.append(f"  {samples / total:>6.1%}  {name:<24} {called}")
    return "\n".join(lines) + "\n"


def write_load(profile: Profile, directory: Path) -> None:
    """<load>.txt, and <load>.folded: a line a stack, "outermost;...;innermost COUNT", as programs that compare flame
    graphs read it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{profile.load}.txt").write_text(load_text(profile))
    stacks = (";".join(frame.symbol for frame in stack) + f" {count}\n" for stack, count in profile.folded.items())
    (directory / f"{profile.load}.folded").write_text("".join(sorted(stacks)))


def write_flame_graphs(profiles: Sequence[Profile], directory: Path) -> Path:
    """profile.speedscope.json: every load's stacks, for https://www.speedscope.app. Returns its path."""
    path = directory / "profile.speedscope.json"
    path.write_text(json.dumps(speedscope(profiles)))
    return path


def speedscope(profiles: Sequence[Profile]) -> dict[str, Any]:
    """The profiles in speedscope's file format (https://www.speedscope.app/file-format-schema.json). A frame's `file`,
    by which speedscope colours it, is the group of its module."""
    numbers: dict[Frame, int] = {}
    for profile in profiles:
        for stack in profile.folded:
            for frame in stack:
                numbers.setdefault(frame, len(numbers))
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        # Only the two sides, which hold all stacks, have no module.
        "shared": {
            "frames": [
                {"name": symbol, "file": f"{group_of(module)}: {module}" if module else ""}
                for symbol, module in numbers
            ]
        },
        "profiles": [
            {
                "type": "sampled",
                "name": "; ".join((profile.title, *profile.notes)),
                "unit": "none",
                "startValue": 0,
                "endValue": profile.folded.total(),
                "samples": [[numbers[frame] for frame in stack] for stack in profile.folded],
                "weights": list(profile.folded.values()),
            }
            for profile in profiles
        ],
    }
