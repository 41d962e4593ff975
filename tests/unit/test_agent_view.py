"""What the status says of limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from nodeseal.api.status_view import limits_of
from nodeseal.contracts.core import Limited, WorkloadStats
from nodeseal.contracts.status import Limit
from nodeseal.mesh.limits import Limits

NOW = datetime(2026, 11, 25, 8, 31, tzinfo=UTC)
LIMITS = Limits(connections=20, memory=0, new_connections=5)


def row(workload: str, *, limits: Limits = LIMITS, **refused: tuple[int, int, int]) -> WorkloadStats:
    names = ("connections", "new_connections", "memory", "descriptors", "questions")
    met = {name: refused.get(name, (0, 0, 0)) for name in names}
    limited = {name: Limited(refused=count, first_ms=first, last_ms=last) for name, (count, first, last) in met.items()}
    return WorkloadStats(workload=workload, key=1, limits=limits, limited=limited)


def test_a_limit_that_was_reached_says_since_when() -> None:
    found = limits_of([row("default/a", connections=(3, 60_000, 1_500)), row("default/b")], NOW)
    assert found["default/a"]["connections"] == Limit(
        limit=20, refused=3, since="2026-11-25T08:30:00+00:00", last_seconds=1.5
    )
    assert found["default/a"]["memory"] == Limit()
    assert found["default/b"]["connections"].refused == 0


def test_refusals_of_several_cores_add_up() -> None:
    older = row("default/a", limits=replace(LIMITS, connections=7), connections=(2, 120_000, 90_000))
    (found,) = limits_of([row("default/a", connections=(3, 60_000, 1_500)), older], NOW).values()
    assert found["connections"] == Limit(limit=20, refused=5, since="2026-11-25T08:29:00+00:00", last_seconds=1.5)
