"""From the rounds of one comparison to its figures. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def percentile(values: Sequence[float], percent: int) -> float:
    """The one of the values that so many of a hundred are below; infinity when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("inf")


def medians(measured: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What was measured, by its kind: {"bulk": {figure: median of the rounds, "ratio_p99_worst", "rounds"}}. Each round
    has its "ratio_p99" and, under the name of `kind`, what it was of; ratios are those within each round."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(one[kind] for one in measured):
        rounds = [one for one in measured if one[kind] == name]
        found[name] = {key: statistics.median(one[key] for one in rounds) for key in rounds[0] if key != kind}
        found[name]["ratio_p99_worst"] = max(one["ratio_p99"] for one in rounds)
        found[name]["rounds"] = len(rounds)
    return found
