"""bench.rounds: percentiles and medians of rounds."""

from __future__ import annotations

from bench.rounds import percentile


def test_a_percentile_of_few_values_is_one_of_them() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0


def test_a_percentile_of_no_values_is_out_of_reach() -> None:
    assert percentile([], 50) == float("inf")
