"""All objects of one kind as they are now: listed once, then followed by a watch.

How it works. A watch that ends, for whatever reason, is begun again from the last version that it told, so that nothing
is listed twice. Only a version that the server has forgotten (410), or does not watch from time and again, makes a new
list. While the server is away what was known counts. Tries come at growing intervals, each with its jitter: the agents
of a cluster find their server again at the same moment. A watch that lasted for a while and ended is no failure,
however it ended: one of few objects is silent for so long that it is given up, where the server sends no bookmarks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic

from nodeseal.backoff import Backoff
from nodeseal.kubernetes.access import AccessError
from nodeseal.kubernetes.api import Api, AwayError, Change, ChangeType, RefusedError
from nodeseal.kubernetes.objects import Key, Resource, T

log = logging.getLogger("nodeseal.agent")

_FIRST_S, _LONGEST_S = 0.5, 30.0
_WATCH_S = 600.0
_REFUSALS_MOST = 3
"""After so many it may be the version's fault, whatever the server says."""
_LATER = frozenset({401, 403, 429, 503})
"""What another version would be refused with as well."""
_LISTED_LATELY_S = 60.0
"""A version that is refused so soon after the list that told it is not refused for its age."""
_SHORT_S = 1.0
"""A watch that ends sooner is as one that was refused: whoever begins it again at once asks without end."""


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
        """They were listed once, or are followed from where they were known."""
        self.problem: str | None = None
        """Why they cannot be followed now, one line; None: they are."""
        self.unread: dict[Key, str] = {}
        """Objects that cannot be read: what they said before counts."""
        self._api = api
        self._resource = resource
        self._changed = changed
        self._selectors = dict(selectors or {})
        self._version = ""
        self._open_since: float | None = None
        """When the present watch was begun; None: it is not yet."""
        self._untold: set[Key] = set()
        """Of what `changed` could not be told."""
        self._listed_at: float | None = None
        self._refusals = 0
        """How often in succession the server did not watch from this version."""
        self._backoff = Backoff(_FIRST_S, _LONGEST_S)

    @property
    def version(self) -> str:
        """As of which `items` are; "": nobody knows."""
        return self._version

    @property
    def watching(self) -> bool:
        """What changes now is seen, as far as anybody can tell."""
        return self._open_since is not None

    @property
    def watching_since(self) -> float | None:
        """When that began, by the event loop's clock; None: it is not so."""
        return self._open_since

    def restore(self, items: Iterable[T], version: str) -> None:
        """What was known before, in another process too: it counts until the server tells better. `version`: from where
        it can be followed on; "": it has to be listed again. To be called before `run`; tells nobody."""
        self.items.clear()
        self.items.update((item.key, item) for item in items)
        self._version = version

    async def run(self) -> None:
        """Never ends, and never raises."""
        clock = asyncio.get_running_loop().time
        while True:
            self._open_since = None
            try:
                await self._tell(set())
                if not self._version:
                    await self._list()
                await self._watch()
                after, why = None, None
            except RefusedError as error:
                after, why = error.retry_after, str(error)
                self._refusals += error.code not in _LATER
                if error.gone or self._refusals >= _REFUSALS_MOST:
                    watched, self._version, self._refusals = self._version, "", 0
                    lately = self._listed_at is not None and clock() - self._listed_at <= _LISTED_LATELY_S
                    # A list of which that is said comes in pages that take too long, and will the next time again.
                    if watched and not lately:
                        # The server is there again: what was waited for while it was away is over.
                        self._backoff.reset()
            except (AwayError, AccessError) as error:
                after, why = None, str(error)
            except Exception as error:  # whatever it is, they are followed again
                log.exception("%s cannot be followed", self._resource.name)
                after, why = None, f"{type(error).__name__}; the agent's log has more"
            if self._open_since is not None and clock() - self._open_since >= _SHORT_S:
                # All watches end some time: that is none of what is wrong before it cannot be begun again.
                self._backoff.reset()
                self._refusals = 0
            else:
                self._failed(why or "the API server ends the watch as soon as it has begun")
            self._open_since = None
            await asyncio.sleep(max(self._backoff.next(), min(after or 0.0, _LONGEST_S)))

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
        self._listed_at = asyncio.get_running_loop().time()
        self.synced.set()
        await self._tell(different | gone)

    async def _watch(self) -> None:
        # Not all agents of a cluster begin again at once for ever because they once did.
        seconds = round(_WATCH_S * (0.5 + 0.5 * random.random()))  # noqa: S311
        watch = self._api.watch(self._resource, self._version, self._selectors, seconds)
        async with contextlib.aclosing(watch) as batches:
            async for changes in batches:
                if self._open_since is None:
                    self._open_since = asyncio.get_running_loop().time()
                    self._well()
                keys = {key for change in changes if (key := self._take(change)) is not None}
                if changes:
                    self._version = changes[-1].version
                await self._tell(keys)

    async def _tell(self, keys: set[Key]) -> None:
        """What could not be told before is told with it."""
        self._untold |= keys
        if self._untold:
            await self._changed(set(self._untold))
            self._untold.clear()

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
        self.synced.set()
        if self.problem is not None:
            log.info("%s are followed again", self._resource.name)
        self.problem = None

    def _failed(self, why: str) -> None:
        if self.problem is None:
            log.warning("%s cannot be followed: %s; what is known of them counts", self._resource.name, why)
        self.problem = why
