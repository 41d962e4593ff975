"""A source's changes, one item after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from nodeseal.mesh.model import Mesh
from nodeseal.sources.source import MeshStateError, Source

Next = Callable[[], Awaitable[Mesh | MeshStateError]]


@contextlib.asynccontextmanager
async def following(source: Source) -> AsyncIterator[Next]:
    """Gives a function that waits for the next item."""
    changes = source.changes()

    async def following_item() -> Mesh | MeshStateError:
        async with asyncio.timeout(20):
            return await anext(changes)

    try:
        yield following_item
    finally:
        await changes.aclose()  # type: ignore[attr-defined]
