"""All objects of one kind as they are now: listed once, then followed by a watch.

How it works. A watch that ends, for whatever reason, is begun again from the last version that it told, so that nothing
is listed twice. Only a version that the server has forgotten (410), or that cannot be read, makes a new list. While the
server is away what was known counts. Tries come at growing intervals, each with its jitter: the agents of a cluster
find their server again at the same moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic

from nodeseal.backoff import Backoff
from nodeseal.sources.kubernetes.access import AccessError
from nodeseal.sources.kubernetes.api import Api, AwayError, Change, ChangeType, RefusedError
from nodeseal.sources.kubernetes.objects import Key, Resource, T

log = logging.getLogger("nodeseal.agent")

_FIRST_S, _LONGEST_S = 0.5, 30.0


class Followed(Generic[T]):
    """`items`: as far as they are known; changed in place, right before `changed` is called."""

    def __init__(
        self,
        api: Api,
        resource: Resource[T],
        changed: Callable[[set[Key]], Awaitable[None]],
        selectors: Mapping[str, str] | None = None,
    ) -> None:
        """`changed` gets the keys of what was put in, changed or taken out: several where they came at once."""
        self.items: dict[Key, T] = {}
        self.synced = asyncio.Event()
        """They were listed once."""
        self.problem: str | None = None
        """Why they cannot be followed now, one line; None: they are."""
        self.unread: dict[Key, str] = {}
        """Objects that cannot be read: what they said before counts."""
        self._api = api
        self._resource = resource
        self._changed = changed
        self._selectors = dict(selectors or {})
        self._version = ""
        self._backoff = Backoff(_FIRST_S, _LONGEST_S)

    async def run(self) -> None:
        """Never ends, and never raises."""
        while True:
            delay = 0.0
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except RefusedError as error:
                delay = self._failed(str(error), error.retry_after)
                if error.gone:
                    self._version, delay = "", min(delay, 1.0)
            except (AwayError, AccessError) as error:
                delay = self._failed(str(error), None)
            await asyncio.sleep(delay)

    async def _list(self) -> None:
        listing = await self._api.list_all(self._resource, self._selectors)
        found = {item.key: item for item in listing.items}
        different = {key for key, item in found.items() if self.items.get(key) != item}
        gone = self.items.keys() - found.keys() - listing.unread.keys()
        for key in gone:
            del self.items[key]
        self.items.update(found)
        self.unread = dict(listing.unread)
        self._version = listing.version
        self._well()
        self.synced.set()
        if different or gone:
            await self._changed(different | gone)

    async def _watch(self) -> None:
        async for changes in self._api.watch(self._resource, self._version, self._selectors):
            self._well()
            keys = {key for change in changes if (key := self._take(change)) is not None}
            self._version = changes[-1].version
            if keys:
                await self._changed(keys)

    def _take(self, change: Change[T]) -> Key | None:
        """The key of what is another now."""
        if change.type is ChangeType.BOOKMARK:
            return None
        if change.type is ChangeType.DELETED:
            self.unread.pop(change.key, None)
            return change.key if self.items.pop(change.key, None) is not None else None
        if change.item is None:
            assert change.fault is not None
            self.unread[change.key] = change.fault
            return None
        self.unread.pop(change.key, None)
        if self.items.get(change.key) == change.item:
            return None
        self.items[change.key] = change.item
        return change.key

    def _well(self) -> None:
        if self.problem is not None:
            log.info("%s are followed again", self._resource.name)
        self.problem = None
        self._backoff.reset()

    def _failed(self, why: str, after: float | None) -> float:
        """The seconds until the next try."""
        if self.problem is None:
            log.warning("%s cannot be followed: %s; what is known of them counts", self._resource.name, why)
        self.problem = why
        return max(self._backoff.next(), after or 0.0)
