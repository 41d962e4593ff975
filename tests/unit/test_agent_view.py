"""What the status says of limits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nodeseal.api.views import limits_of

NOW = datetime(2026, 11, 25, 8, 31, tzinfo=UTC)
LIMITS = {"connections": 20, "memory": 0, "new_connections": 5}


def row(workload: str, *, limits: dict[str, int] = LIMITS, **refused: tuple[int, int, int]) -> dict[str, Any]:
    limited = {
        name: dict(zip(("refused", "first_ms", "last_ms"), refused.get(name, (0, 0, 0)), strict=True))
        for name in ("connections", "new_connections", "memory", "descriptors", "questions")
    }
    return {"workload": workload, "key": 1, "limits": limits, "limited": limited}


def test_a_limit_that_was_reached_says_since_when() -> None:
    found = limits_of([row("default/a", connections=(3, 60_000, 1_500)), row("default/b")], NOW)
    assert found["default/a"]["connections"] == {
        "limit": 20,
        "refused": 3,
        "since": "2026-11-25T08:30:00+00:00",
        "last_seconds": 1.5,
    }
    assert found["default/a"]["memory"] == {"limit": None, "refused": 0, "since": None, "last_seconds": None}
    assert found["default/b"]["connections"]["refused"] == 0


def test_refusals_of_several_cores_add_up() -> None:
    older = row("default/a", limits=LIMITS | {"connections": 7}, connections=(2, 120_000, 90_000))
    (found,) = limits_of([row("default/a", connections=(3, 60_000, 1_500)), older], NOW).values()
    assert found["connections"] == {
        "limit": 20,
        "refused": 5,
        "since": "2026-11-25T08:29:00+00:00",
        "last_seconds": 1.5,
    }
