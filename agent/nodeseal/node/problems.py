"""What is wrong with this node, in one list: `nodeseal status` shows it, `nodeseal status --check` answers by it.

Whatever part of the agent knows of something wrong says so here and nowhere else: a `ProblemWord` in
nodeseal.mesh.reasons (with its meaning and remedy, from which docs/words.md is made), and a `Problem` that `collect`
finds. Two kinds of parts feed it: what the status says already (`of_status`, a pure function of the answer), and
objects with a method `problems()`, which are asked one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from nodeseal.capture.reservations import RESERVATIONS
from nodeseal.contracts.status import CaptureRow, CoreRow, Limit, ProblemRow, Status
from nodeseal.local import run_directory
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord

LIMITS_SHOWN_S = 600.0
"""How long a limit that refused something is worth a line."""

HELD_SHOWN_S = 600.0
"""The same for packets that were kept from leaving in plaintext."""


class Part(Protocol):
    """A part of the agent that may know of something wrong."""

    def problems(self) -> Iterable[Problem]:
        """What is wrong now. Called in the event loop, so it must not wait."""


def collect(status: Status, parts: Iterable[Part]) -> list[ProblemRow]:
    """Everything, the worst first, as the status has it under "problems"."""
    found = [*of_status(status), *(problem for part in parts for problem in part.problems())]
    return [row_of(problem) for problem in sorted(found, key=lambda problem: problem.word.level.value)]


def row_of(problem: Problem) -> ProblemRow:
    """As the status has it."""
    return ProblemRow(
        word=problem.word.value,
        level=problem.word.level.value,
        about=problem.about,
        text=problem.text,
        remedy=problem.remedy,
    )


def of_status(status: Status) -> list[Problem]:
    """What the rest of the answer says is wrong with core, capture and limits."""
    found = [*_core(status.core, Path(status.run_dir)), *_capture(status.capture)]
    for one in status.workloads:
        found += _limits(one.workload, one.limits)
    return found


def _core(core: CoreRow, run_dir: Path) -> list[Problem]:
    found = []
    if core.error or core.pid is None:
        text = core.error or f"the core is {core.state}"
        found.append(Problem(ProblemWord.CORE_DOWN, text, "the agent goes on trying; see core.log"))
    elif core.crashes:
        times = "once" if core.crashes == 1 else f"{core.crashes} times"
        text = f"the core crashed {times} in the last 10 minutes and was started again"
        remedy = "see core.log"
        if core.starved:
            text += f", {core.starved} of these for want of memory"
            remedy = "raise core.memory, or lower the workloads' limits"
        found.append(Problem(ProblemWord.CORE_CRASHED, text, remedy))
    if core.outdated:
        text = f"another core is installed than version {core.version} that runs"
        found.append(Problem(ProblemWord.CORE_OUTDATED, text, run_directory.command("upgrade-core", run_dir)))
    return found


def _capture(capture: CaptureRow) -> list[Problem]:
    found = []
    if capture.why:
        lost = len(RESERVATIONS["iptables"]) - len(RESERVATIONS["ebpf"]) + bool(capture.early)
        less = f"with {lost} promises less ('nodeseal check' lists them)"
        text = f"capture is by iptables, not by eBPF, {less}: {capture.why}"
        remedy = "say 'capture: iptables' in the configuration if that is meant"
        found.append(Problem(ProblemWord.CAPTURE_FALLBACK, text, remedy))
    held = capture.held
    if held.last_seconds is not None and held.last_seconds < HELD_SHOWN_S:
        text = f"{held.packets} packets of captured connections were kept from leaving in plaintext"
        remedy = "look for rules of this node or in its pods that set marks or translate addresses"
        found.append(Problem(ProblemWord.PLAINTEXT_HELD, text, remedy))
    if capture.tracked:
        text = f"no rule keeps what processes of this node dial from its NAT: {capture.tracked}"
        found.append(Problem(ProblemWord.NAT_APPLIES, text, "give the kernel nf_tables, or install iptables"))
    return found


def _limits(name: str, limits: dict[str, Limit]) -> list[Problem]:
    """One for each limit that refused a connection in the last minutes."""
    return [
        Problem(
            ProblemWord.LIMIT_REACHED,
            f"{name}: limit reached: {limit.replace('_', ' ')}{_value(limit, one.limit)}, {one.refused} refused "
            f"since {_clock(one.since)}",
            "raise it, or find who opens them",
            name,
        )
        for limit, one in limits.items()
        if one.since is not None and one.last_seconds is not None and one.last_seconds < LIMITS_SHOWN_S
    ]


def _value(name: str, limit: int | None) -> str:
    if limit is None:
        return ""
    return f" ({limit / (1 << 20):g} MiB)" if name == "memory" else f" ({limit})"


def _clock(moment: str) -> str:
    """The time of day, here; of another day with its date."""
    local = datetime.fromisoformat(moment).astimezone()
    return f"{local:%H:%M}" if local.date() == datetime.now(UTC).astimezone().date() else f"{local:%Y-%m-%d %H:%M}"
