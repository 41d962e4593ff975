"""What a chaos run found, for a person and for a program. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LAST_EVENTS = 8
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Logged:
    """An event that took place. `at`: seconds since the traffic began."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A violation. `at` as in Logged."""

    at: float
    what: str
    detail: str


@dataclass(slots=True)
class Report:
    """Every number of a run. `findings` is empty when all that was promised held."""

    seed: int
    seconds: float
    events: dict[str, int] = field(default_factory=dict)
    opened: int = 0
    closed: int = 0
    long_lived: int = 0
    messages: int = 0
    bytes: int = 0
    slowest_ms: int = 0
    excused_cut: int = 0
    excused_failed: int = 0
    frames: int = 0
    frames_lost: int = 0
    open_frames: int = 0
    rounds: int = 0
    generations: int = 0
    findings: list[Finding] = field(default_factory=list)
    history: list[Logged] = field(default_factory=list)
    complete: bool = True

    @property
    def passed(self) -> bool:
        """Whether the run was made to its end and nothing was found."""
        return self.complete and not self.findings

    def count(self, *whats: str) -> int:
        """How many findings of these kinds."""
        return sum(finding.what in whats for finding in self.findings)

    def before(self, finding: Finding) -> Sequence[Logged]:
        """The last events before a finding."""
        return [logged for logged in self.history if logged.at <= finding.at][-LAST_EVENTS:]


def to_json(report: Report) -> dict[str, Any]:
    """For `-o json`: the fields of Report but the history, "passed", "counts", and "first", the earliest finding with
    the events before it."""
    value = asdict(report)
    del value["history"]
    first = _first(report)
    value["passed"] = report.passed
    value["counts"] = _counts(report)
    value["first"] = None
    if first is not None:
        value["first"] = asdict(first) | {"events": [asdict(logged) for logged in report.before(first)]}
    return value


def to_text(report: Report) -> str:
    """For a terminal."""
    lines = [f"chaos: seed {report.seed}, {report.seconds:.0f} s"]
    if report.events:
        lines.append(f"  events: {_enumerate(report.events)}")
        waited = f"the longest waited {report.slowest_ms / 1000:.1f} s for its first message"
        lines.append(
            f"  connections: {report.long_lived:,} long-lived, {report.opened:,} opened in all, "
            f"{report.closed:,} ended in order; {waited}"
        )
        lines.append(f"  messages: {report.messages:,} checked, {report.bytes / 1e6:,.1f} MB")
        lines.append(f"  core crashes: {report.excused_cut:,} connections cut, {report.excused_failed:,} failed")
        lines.append(
            f"  link: {report.frames:,} frames, {report.frames_lost:,} lost on purpose; "
            f"{report.open_frames:,} in plaintext of workloads that are not enrolled"
        )
    if report.rounds:
        lines.append(f"  rounds of enrolment: {report.rounds}, core generations: {report.generations}")
    lines.append("")
    lines += [f"  {name:32} {number:>6}" for name, number in _counts(report).items()]
    for finding in report.findings[:_SHOWN]:
        lines.append(f"  {finding.at:8.2f} s  {finding.what}: {finding.detail}")
    if len(report.findings) > _SHOWN:
        lines.append(f"  ... and {len(report.findings) - _SHOWN} more, see -o json")
    if (first := _first(report)) is not None:
        lines.append(f"\nThe first was at {first.at:.2f} s, seed {report.seed}. Before it:")
        lines += [f"  {logged.at:8.2f} s  {logged.text}" for logged in report.before(first)]
    if not report.complete:
        lines.append("\nThe run was not made to its end.")
    lines.append("\nAll that was promised held." if report.passed else f"\nFAILED (repeat with SEED={report.seed})")
    return "\n".join(lines)


def _counts(report: Report) -> dict[str, int]:
    """Each has to be 0."""
    return {
        "cut outside core crashes": report.count("cut", "failed"),
        "with bytes lost or repeated": report.count("wrong"),
        "that did not end in order": report.count("stuck"),
        "plaintext sightings": report.count("plaintext"),
        "times the watch saw not all": report.count("watch"),
        "leaks": report.count("leak"),
        "events that did not come true": report.count("event"),
    }


def _first(report: Report) -> Finding | None:
    return min(report.findings, key=lambda finding: finding.at, default=None)


def _enumerate(events: Mapping[str, int]) -> str:
    return f"{sum(events.values())} ({', '.join(f'{name} {number}' for name, number in sorted(events.items()))})"
