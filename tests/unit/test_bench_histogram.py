"""The histogram that the load generator fills and Python reads."""

from __future__ import annotations

import pytest
from bench.histogram import Histogram, bounds_of, bucket_of


@pytest.mark.parametrize("value", [0, 1, 127, 128, 129, 255, 256, 1_000, 123_456, 1_000_000_007, 2**40, 2**63 - 1])
def test_bucket_holds_its_value(value: int) -> None:
    low, end = bounds_of(bucket_of(value))
    assert low <= value < end


def test_buckets_follow_each_other_without_gap() -> None:
    assert all(bounds_of(bucket)[1] == bounds_of(bucket + 1)[0] for bucket in range(3_000))


@pytest.mark.parametrize("value", [200, 5_000, 77_777, 10_000_019, 2**41 + 12345])
def test_bucket_is_known_to_a_hundredth(value: int) -> None:
    low, end = bounds_of(bucket_of(value))
    assert (end - low) / value < 0.01


def test_percentiles_of_equal_values_are_that_value() -> None:
    histogram = Histogram([(bucket_of(2_000_000), 1000)])
    assert [round(value or 0, 1) for value in histogram.percentiles().values()] == [2.0, 2.0, 2.0, 2.0]


def test_percentile_is_the_smallest_value_that_covers_the_share() -> None:
    histogram = Histogram([(100, 99), (120, 1)])
    assert histogram.percentile(0.99) == pytest.approx(100 / 1e6)
    assert histogram.percentile(0.999) == pytest.approx(120 / 1e6)


def test_percentile_of_one_value() -> None:
    assert Histogram([(64, 1)]).percentile(0.5) == pytest.approx(64 / 1e6)


def test_empty_histogram_has_no_percentiles() -> None:
    assert set(Histogram().percentiles().values()) == {None}


def test_added_histogram_counts_both() -> None:
    histogram = Histogram([(1, 2), (3, 4)])
    histogram.add(Histogram([(3, 1), (5, 1)]))
    assert histogram.count == 8
    assert histogram.percentile(1.0) == pytest.approx(5 / 1e6)
