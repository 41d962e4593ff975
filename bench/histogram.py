"""The histogram of nanoseconds that load.c fills: exact up to 127, then 128 buckets for each power of two, so that a
value is known to 0.8 %."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

_SUB_BITS = 7
_SUB = 1 << _SUB_BITS

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def bucket_of(value: int) -> int:
    """The bucket that counts a value in nanoseconds; the same function as bucket_of() in load.c."""
    if value < _SUB:
        return value
    shift = value.bit_length() - 1 - _SUB_BITS
    return (shift + 1) * _SUB + (value >> shift) - _SUB


def bounds_of(bucket: int) -> tuple[int, int]:
    """The smallest value of a bucket, and the smallest of the next one, in nanoseconds."""
    if bucket < _SUB:
        return bucket, bucket + 1
    shift = bucket // _SUB - 1
    low = (bucket % _SUB + _SUB) << shift
    return low, low + (1 << shift)


class Histogram:
    """Counts of latencies."""

    def __init__(self, buckets: Iterable[Sequence[int]] = ()) -> None:
        """`buckets`: pairs of a bucket and its count, as load.c prints them."""
        self._counts: dict[int, int] = {}
        for bucket, count in buckets:
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    def add(self, other: Self) -> None:
        """Takes over the counts of another histogram."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    def percentile(self, share: float) -> float | None:
        """The latency in milliseconds that `share` (0 to 1) of all values do not exceed: the middle of the bucket in
        which that value lies. None of an empty histogram."""
        total = self.count
        if total == 0:
            return None
        wanted = max(1, math.ceil(round(share * total, 6)))
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                break
        low, end = bounds_of(bucket)
        return (low + end - 1) / 2 / 1e6

    def percentiles(self) -> dict[str, float | None]:
        """PERCENTILES, in milliseconds."""
        return {name: self.percentile(share) for name, share in PERCENTILES.items()}
