"""What all cores of a node tell, in one stream, for one listener.

A task follows each core; cores that come later are found by looking again every LOOK_S. Between the tasks and the
listener is a queue of at most QUEUED messages (each of a bounded number of events): a listener that is slower loses
what finds no room, and is told how many. A core that ends, hangs or speaks an older protocol costs the others nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from nodeseal.contracts.core import EVENTS_SINCE
from nodeseal.contracts.events import Event, Told
from nodeseal.cores.client import CoreError
from nodeseal.cores.link import CoreLink

LOOK_S = 0.5
QUEUED = 64


class Cores(Protocol):
    """Who knows the cores: CoreSupervisor."""

    def links(self) -> list[CoreLink]:
        """All cores that can be asked."""


class Heard(NamedTuple):
    """Events of one core, oldest first; `lost`: how many were lost before them."""

    generation: int
    events: tuple[Event, ...]
    lost: int


async def heard(cores: Cores) -> AsyncGenerator[Heard, None]:
    """Everything from now on. Never ends by itself; nothing is listened to once it is closed."""
    queue: asyncio.Queue[Heard] = asyncio.Queue(QUEUED)
    lost: dict[int, int] = {}
    followers: dict[int, asyncio.Task[None]] = {}

    def put(generation: int, told: Told) -> None:
        before = lost.pop(generation, 0)
        try:
            queue.put_nowait(Heard(generation, told.events, told.lost + before))
        except asyncio.QueueFull:
            lost[generation] = before + told.lost + len(told.events)

    async def follow(link: CoreLink) -> None:
        with contextlib.suppress(CoreError):
            async with contextlib.aclosing(link.events()) as messages:
                async for told in messages:
                    put(link.generation, told)

    async def look() -> None:
        while True:
            for link in cores.links():
                follower = followers.get(link.generation)
                if link.protocol >= EVENTS_SINCE and (follower is None or follower.done()):
                    followers[link.generation] = asyncio.create_task(follow(link), name="events")
            await asyncio.sleep(LOOK_S)

    looking = asyncio.create_task(look(), name="events")
    try:
        while True:
            yield await queue.get()
    finally:
        tasks = [looking, *followers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
