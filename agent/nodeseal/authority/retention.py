"""Until when the store is to forget what has ended.

The clock of a machine may jump forward by months, as when it is restored, or given a wrong time. Then nothing has ended
long ago. So time counts for no more than has passed by the monotonic clock, beginning at the newest certificate that
was there when the process began.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta


class Retention:
    """What ended before `before` is to be forgotten."""

    def __init__(
        self,
        retention: timedelta,
        newest: datetime | None,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`newest`: when the newest certificate was issued, None: there is none; `now`: the wall clock; `clock`:
        seconds, monotonic."""
        self._retention = retention
        self._now = now
        self._clock = clock
        self._begun_at = newest if newest is not None else now()
        self._begun = clock()

    def before(self) -> datetime:
        """At this moment."""
        passed = timedelta(seconds=self._clock() - self._begun)
        return min(self._now(), self._begun_at + passed) - self._retention
