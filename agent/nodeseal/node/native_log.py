"""What became of native connections: the last that were closed, and, while somebody listens, all that open and close.

The BPF programs write a log of bounded length (bpf/lib/account.h), and wake nobody: a connection costs next to nothing
more than without it. So the agent looks: when it is asked, and several times a second while it is listened to. What
found no room meanwhile is lost, and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, Protocol

from nodeseal.capture.errors import CaptureError
from nodeseal.capture.natives import Event, Log

log = logging.getLogger("nodeseal.agent")

LOOK_S = 0.1
_CLOSED_KEPT = 64
_CLOSED_SHOWN_NS = 60_000_000_000
"""As cores keep theirs (cext/src/loop/closed.h)."""


class Reader(Protocol):
    """CaptureThread."""

    async def native_log(self, first: Sequence[int], *, wanted: bool) -> tuple[list[tuple[str, Event]], Log]:
        """See there."""


class Told(NamedTuple):
    """Events, each with its workload, oldest first; `lost`: how many were lost before them."""

    events: list[tuple[str, Event]]
    lost: int


class NativeLog:
    """Of all workloads of the node. All methods belong to the event loop."""

    def __init__(self, capture: Reader, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._capture = capture
        self._clock = clock
        self._lock = asyncio.Lock()
        self._closed: deque[tuple[str, Event]] = deque(maxlen=_CLOSED_KEPT)
        self._next: tuple[int, ...] = ()
        """Where reading goes on."""
        self._listening = False
        self._told = Told([], 0)

    async def closed(self) -> list[tuple[str, Event]]:
        """The last that were closed within a minute, each with its workload. Never raises."""
        await self._look()
        now = self._clock()
        return [one for one in self._closed if now - one[1].when <= _CLOSED_SHOWN_NS]

    async def heard(self) -> AsyncGenerator[Told, None]:
        """Everything from now on, for one listener. Never ends by itself."""
        self._listening = True
        try:
            await self._look()
            self._told = Told([], 0)
            while True:
                await asyncio.sleep(LOOK_S)
                await self._look()
                told, self._told = self._told, Told([], 0)
                if told.events or told.lost:
                    yield told
        finally:
            self._listening = False
            await self._look()

    async def _look(self) -> None:
        async with self._lock:
            try:
                events, found = await self._capture.native_log(self._next, wanted=self._listening)
            except (OSError, CaptureError) as error:
                log.error("the log of native connections cannot be read: %s", error)
                return
            self._next = found.next
            self._closed.extend(one for one in events if one[1].closed)
            if self._listening:
                self._told = Told([*self._told.events, *events], self._told.lost + found.lost)
