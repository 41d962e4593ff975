"""When packets were last kept from leaving in plaintext: the programs only count them."""

from __future__ import annotations

import time
from collections.abc import Callable

from nodeseal.contracts.status import HeldPackets


class HeldBack:
    """Remembers when the count was first seen to be what it is now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._packets = 0
        self._grew_at: float | None = None

    def shown(self, packets: int) -> HeldPackets:
        """Given the count; `last_seconds`, since it was seen to grow, is None when it has not been."""
        if packets > self._packets:
            self._packets, self._grew_at = packets, self._clock()
        since = None if self._grew_at is None else round(self._clock() - self._grew_at, 1)
        return HeldPackets(packets=packets, last_seconds=since)
