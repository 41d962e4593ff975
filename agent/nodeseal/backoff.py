"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Doubles from `first` to `limit` seconds, each +-20 % so that many do not retry together."""

    def __init__(self, first: float, limit: float, rand: Callable[[], float] = random.random) -> None:
        self._first = first
        self._limit = limit
        self._random = rand
        self._next = first

    def next(self) -> float:
        """Seconds to wait before the try that comes now."""
        delay = self._next
        self._next = min(delay * 2, self._limit)
        return delay * (0.8 + 0.4 * self._random())

    def reset(self) -> None:
        """A try went well."""
        self._next = self._first
