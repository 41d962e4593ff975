"""A day of renewals, without a service: when the workloads of a fleet that started at once ask for certificates."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nodeseal.identity.credentials import renewal_time

_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class _Certificate:
    issued: datetime
    not_after: datetime


@dataclass(frozen=True)
class Day:
    """Renewals a second: on average, and in the busiest of the parts that the day was cut into."""

    renewals: int
    mean: float
    peak: float


def simulate(
    workloads: int,
    *,
    lifetime: timedelta = timedelta(hours=24),
    start: timedelta = timedelta(minutes=1),
    day: timedelta = timedelta(hours=24),
    part: timedelta = timedelta(minutes=5),
    rand: Callable[[], float] | None = None,
) -> Day:
    """`start`: within which all workloads get their first certificate; the day begins then."""
    rand = rand or random.Random(1).random  # noqa: S311 (a simulation)
    due: list[tuple[datetime, int]] = []
    for number in range(workloads):
        issued = _START + start * rand()
        due.append((renewal_time(_Certificate(issued, issued + lifetime), rand), number))
    heapq.heapify(due)
    parts = [0] * (day // part)
    begin = _START + start
    while due[0][0] < begin + day:
        at, number = due[0]
        heapq.heapreplace(due, (renewal_time(_Certificate(at, at + lifetime), rand, at), number))
        if at >= begin:
            parts[(at - begin) // part] += 1
    total = sum(parts)
    return Day(total, total / day.total_seconds(), max(parts) / part.total_seconds())
