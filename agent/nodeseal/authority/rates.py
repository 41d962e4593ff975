"""How often somebody may ask: a bucket of tokens for each, which fills with time. Bounded, however many there are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Rates:
    """`rate`: requests a second in the long run; `burst`: at once, from one who has been quiet.

    When more than `most` ask, the one that was quiet for the longest is forgotten, and is as new when it comes again.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float], most: int = 20_000) -> None:
        """`clock`: seconds, monotonic."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def wait(self, who: Hashable) -> float:
        """Takes one request's worth from whoever asks; 0: granted. Else nothing is taken, and so many seconds on it
        would be."""
        bucket = self._filled(who)
        if bucket.left < 1:
            return (1 - bucket.left) / self._rate
        bucket.left -= 1
        return 0.0

    def peek(self, who: Hashable) -> float:
        """As `wait`, and takes nothing."""
        bucket = self._filled(who)
        return 0.0 if bucket.left >= 1 else (1 - bucket.left) / self._rate

    def _filled(self, who: Hashable) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(who)
        if bucket is None:
            bucket = self._buckets[who] = _Bucket(self._burst, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
            return bucket
        self._buckets.move_to_end(who)
        bucket.left = min(self._burst, bucket.left + (now - bucket.at) * self._rate)
        bucket.at = now
        return bucket
