"""What a node says of itself in its MeshNode, and when it says so. Pure.

Every agent of the cluster gets every MeshNode that is written, so they are written seldom: to renew, and when something
is another by now. What is bad is told at once; numbers that go up and down all day are told a few times at once, and
otherwise with the next renewal.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from nodeseal.mesh.address import Address
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import Level
from nodeseal.mesh.trust import Trust
from nodeseal.sources.kubernetes.holder import Holder
from nodeseal.sources.kubernetes.mesh_objects import (
    MOST_NODE_ADDRESSES,
    MOST_PROBLEMS,
    Condition,
    NodeStatus,
    ProblemSpec,
    write_trust,
)
from nodeseal.sources.kubernetes.renewals import RENEWAL_S
from nodeseal.sources.source import NodeReport

_TEXT_MAX = 512
_ABOUT_MAX = 320
_SUMMARY_MAX = 200
_MESSAGE_MAX = 512

_APART_S = 10.0
_AT_ONCE = 4


def node_status(
    version: str,
    holder: Holder,
    trust: Trust | None,
    report: NodeReport | None,
    before: NodeStatus | None,
    now: datetime,
    addresses: Sequence[Address] = (),
) -> NodeStatus:
    """What is to be written. `before`: what is; a condition that is as it was has its time."""
    time = now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    since = {(one.type, one.status): one.last_transition_time for one in before.conditions} if before else {}
    conditions = [
        Condition(kind, status, reason, message[:_MESSAGE_MAX], since.get((kind, status), time))
        for kind, status, reason, message in (_enrolled(report), _healthy(report))
    ]
    problems = report.problems if report is not None else ()
    return NodeStatus(
        agent_version=version[:64],
        holder=holder.spec,
        renew_time=time,
        enrolled=report.enrolled if report is not None else None,
        wanted=report.wanted if report is not None else None,
        summary=_summary(problems),
        problems=[_problem(one) for one in problems[:MOST_PROBLEMS]],
        trust=write_trust(trust),
        addresses=[str(address) for address in addresses[:MOST_NODE_ADDRESSES]],
        conditions=conditions,
    )


def _enrolled(report: NodeReport | None) -> tuple[str, str, str, str]:
    """(type, status, reason, message)"""
    if report is None:
        return "Enrolled", "Unknown", "Starting", "the agent has not said yet"
    message = f"{report.enrolled} of {report.wanted} workloads are enrolled"
    if report.enrolled >= report.wanted:
        return "Enrolled", "True", "AllEnrolled", message
    return "Enrolled", "False", "SomeAreNot", message


def _healthy(report: NodeReport | None) -> tuple[str, str, str, str]:
    """Same. By the worst problem, if something that was asked for is lacking."""
    if report is None:
        return "Healthy", "Unknown", "Starting", "the agent has not said yet"
    worst = next((one for one in report.problems if one.word.level is Level.ERROR), None)
    if worst is None:
        return "Healthy", "True", "NothingLacking", ""
    return "Healthy", "False", _camel(worst.word.value), f"{worst.text}; {worst.remedy}"


def _camel(word: str) -> str:
    return "".join(part.capitalize() for part in word.split("-"))


def _summary(problems: tuple[Problem, ...]) -> str:
    words = list(dict.fromkeys(one.word.value for one in problems))
    shown = ""
    for number, word in enumerate(words):
        more = f"{shown}, {word}" if shown else word
        if len(more) > _SUMMARY_MAX:
            return f"{shown} and {len(words) - number} more"
        shown = more
    return shown


def _problem(problem: Problem) -> ProblemSpec:
    about = (problem.about or "")[:_ABOUT_MAX]
    return ProblemSpec(problem.word.value, problem.text[:_TEXT_MAX], problem.remedy[:_TEXT_MAX], about)


class Pace:
    """When a MeshNode is written. `now`, in all of it: of a clock that goes evenly."""

    def __init__(self, now: float, jitter: float) -> None:
        """`jitter`, here and below: from 0 to 1, so that not all nodes write at once."""
        self._written = now
        self._renew = _renewal(now, jitter)
        self._left = float(_AT_ONCE)
        self._filled = now

    def wrote(self, now: float, jitter: float) -> None:
        """It was written."""
        self._fill(now)
        self._left = max(0.0, self._left - 1)
        self._written = now
        self._renew = _renewal(now, jitter)

    def due(self, now: float, *, worse: bool, other: bool) -> float:
        """In how many seconds it is to be written. `worse`: other problems than were told; `other`: something else."""
        self._fill(now)
        soonest = max(0.0, self._written + _APART_S - now)
        if worse or (other and self._left >= 1):
            return soonest
        return max(0.0, self._renew - now)

    def _fill(self, now: float) -> None:
        self._left = min(float(_AT_ONCE), self._left + (now - self._filled) / RENEWAL_S)
        self._filled = now


def _renewal(now: float, jitter: float) -> float:
    return now + RENEWAL_S * (0.9 + 0.2 * jitter)
