"""What a node says of itself in Kubernetes, how often, and whose the node is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

import pytest

from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import Level, ProblemWord
from nodeseal.mesh.trust import Trust
from nodeseal.sources.kubernetes.holder import FRESH_S, Holder, refusal, seconds_since
from nodeseal.sources.kubernetes.mesh_objects import HolderSpec, NodeStatus
from nodeseal.sources.kubernetes.node_status import Pace, node_status
from nodeseal.sources.source import NodeReport

MINE = Holder("boot-1", Path("/run/nodeseal"))
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DOWN = Problem(ProblemWord.CORE_DOWN, "the core is gone", "look at core.log")
STARTING = Problem(ProblemWord.AGENT_STARTING, "it starts", "wait")


def of(report: NodeReport | None, before: NodeStatus | None = None, now: datetime = NOW) -> NodeStatus:
    return node_status("0.1.0", MINE, Trust(frozenset({"1" * 32}), "1" * 32), report, before, now)


def conditions(status: NodeStatus) -> dict[str, tuple[str, str]]:
    return {one.type: (one.status, one.reason) for one in status.conditions}


def test_node_says_how_many_are_enrolled_and_what_is_wrong() -> None:
    status = of(NodeReport(2, 3, (DOWN, STARTING)))
    assert (status.enrolled, status.wanted) == (2, 3)
    assert status.summary == "core-down, agent-starting"
    assert [(one.word, one.text, one.remedy) for one in status.problems] == [
        ("core-down", "the core is gone", "look at core.log"),
        ("agent-starting", "it starts", "wait"),
    ]
    assert conditions(status) == {"Enrolled": ("False", "SomeAreNot"), "Healthy": ("False", "CoreDown")}
    assert status.renew_time == "2026-01-01T12:00:00Z"


def test_warning_is_told_and_the_node_is_healthy() -> None:
    assert STARTING.word.level is Level.WARNING
    status = of(NodeReport(3, 3, (STARTING,)))
    assert conditions(status) == {"Enrolled": ("True", "AllEnrolled"), "Healthy": ("True", "NothingLacking")}
    assert status.summary == "agent-starting"


def test_node_says_where_node_ports_are_dialled() -> None:
    many = [IPv4Address(0x0A000000 + last) for last in range(20)]
    status = node_status("0.1.0", MINE, None, None, None, NOW, many)
    assert status.addresses == [f"10.0.0.{last}" for last in range(16)]
    assert of(None).addresses == []


def test_before_the_first_report_nobody_knows() -> None:
    status = of(None)
    assert (status.enrolled, status.wanted) == (None, None)
    assert {status for status, _ in conditions(status).values()} == {"Unknown"}


def test_condition_has_the_time_since_which_it_is_so() -> None:
    first = of(NodeReport(3, 3))
    later = of(NodeReport(2, 3), first, NOW + timedelta(minutes=1))
    times = {one.type: one.last_transition_time for one in later.conditions}
    assert times == {"Enrolled": "2026-01-01T12:01:00Z", "Healthy": "2026-01-01T12:00:00Z"}


def test_what_is_told_has_bounds() -> None:
    words = list(ProblemWord)
    many = tuple(Problem(word, "x" * 5000, "y" * 5000, "z" * 5000) for word in words)
    status = of(NodeReport(1 << 40, 1 << 41, many * 100))
    assert len(status.problems) == 8
    assert {len(one.text) for one in status.problems} == {512}
    assert len(status.summary) <= 256
    assert status.summary.endswith(" more")
    assert all(len(one.message) <= 512 for one in status.conditions)


# ---- how often


def test_node_renews_every_two_minutes_not_all_at_once() -> None:
    assert [round(Pace(0, jitter).due(0, worse=False, other=False)) for jitter in (0, 0.5, 1)] == [108, 120, 132]


def test_what_is_bad_is_told_at_once_but_not_all_the_time() -> None:
    pace = Pace(0, 0.5)
    assert pace.due(100, worse=True, other=False) == 0
    for now in range(100, 300, 10):
        pace.wrote(now, 0.5)
        assert pace.due(now + 3, worse=True, other=False) == 7


def test_numbers_that_change_all_day_are_told_a_few_times_and_then_with_the_renewals() -> None:
    pace = Pace(0, 0.5)
    writes = []
    for now in range(3600):
        if pace.due(now, worse=False, other=True) == 0:
            writes.append(now)
            pace.wrote(now, 0.5)
    assert writes[:4] == [10, 20, 30, 40]
    assert len(writes) <= 4 + 3600 / 120 + 1
    assert max(later - one for one, later in pairwise(writes)) <= 132


# ---- whose the node is


@pytest.mark.parametrize(
    ("theirs", "seconds", "node_boot", "left", "why"),
    [
        (None, None, "", False, None),
        (HolderSpec("boot-1", "/run/nodeseal"), 1, "", True, None),
        # Another run directory of this machine: in use while its agent renews, and while something is left of it.
        (
            HolderSpec("boot-1", "/run/other"),
            7,
            "boot-1",
            False,
            "the node n1 is in use by another agent of this machine, with the run directory /run/other, which said so "
            "7 s ago: start the agent with that one, or clean that one up first",
        ),
        (
            HolderSpec("boot-1", "/run/other"),
            FRESH_S,
            "boot-1",
            True,
            "the node n1 is in use by another agent of this machine, with the run directory /run/other: start the "
            "agent with that one, or clean that one up first",
        ),
        (HolderSpec("boot-1", "/run/other"), FRESH_S, "boot-1", False, None),
        # This machine was started again: its kubelet has said so before any pod came.
        (HolderSpec("boot-0", "/run/nodeseal"), 1, "boot-1", False, None),
        # Another machine has the name.
        (
            HolderSpec("boot-0", "/run/nodeseal"),
            1,
            "boot-0",
            False,
            "the node n1 belongs to another agent on another machine (boot boot-0, this one is boot-1): give this "
            "agent the name of its own node",
        ),
        (HolderSpec("boot-0", "/run/nodeseal"), FRESH_S, "", False, None),
    ],
)
def test_node_is_one_agent_s(
    theirs: HolderSpec | None, seconds: float | None, node_boot: str, left: bool, why: str | None
) -> None:
    assert refusal("n1", MINE, theirs, seconds, node_boot, left=left) == why


def test_time_of_a_renewal_is_read() -> None:
    assert seconds_since("2026-01-01T11:59:00Z", NOW) == 60
    assert seconds_since("2026-01-01T12:59:00Z", NOW) == 0
    assert [seconds_since(text, NOW) for text in ("", "yesterday", "2026-01-01T11:59:00")] == [None, None, None]


def test_machine_says_its_boot() -> None:
    assert len(Holder.here(Path("/run/x")).boot) == 36
