"""All that is followed of the cluster, and its copy on the node's disk.

What grows with the cluster is followed on from the copy's version where an agent starts again, so that a rollout does
not have every agent list everything. What is of this node, and what is little, is listed: for a moment after its start
an agent would go by what is not so any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nodeseal.kubernetes.api import Api
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import Key, KubernetesObject, Resource
from nodeseal.sources.kubernetes import saved
from nodeseal.sources.source import Concern, StateProblem

log = logging.getLogger("nodeseal.agent")

T = TypeVar("T", bound=KubernetesObject)

_SAVE_S = 2.0
_SAVE_S_PER_MIB = 10.0
"""More seldom the more it is: a tenth of a percent of the time."""


@dataclass
class _Part:
    """One kind. `goes_on`: it may be followed on from the copy."""

    resource: Resource[Any]
    followed: Followed[Any]
    goes_on: bool
    restored: bool = False
    dirty: bool = False
    saved_at: float = 0.0
    size: int = 0


class Cluster:
    """`follow` each kind, `restore`, then `run`."""

    def __init__(self, api: Api, directory: Path, woken: Callable[[], None]) -> None:
        """`directory`: where the copy is; `woken` is called after each change, and when something is wrong or well
        again."""
        self._api = api
        self._directory = directory
        self._woken = woken
        self._parts: list[_Part] = []
        self._changed = asyncio.Event()
        self._save_failure = ""

    def follow(
        self,
        resource: Resource[T],
        changed: Callable[[set[Key]], None],
        selectors: Mapping[str, str] | None = None,
        *,
        goes_on: bool = False,
    ) -> Followed[T]:
        """Objects of one more kind. `changed` gets the keys of what has changed."""

        async def tell(keys: set[Key]) -> None:
            changed(keys)
            part.dirty = True
            self._changed.set()
            self._woken()

        followed: Followed[T] = Followed(self._api, resource, tell, selectors)
        part = _Part(resource, followed, goes_on)
        self._parts.append(part)
        return followed

    @property
    def fresh(self) -> bool:
        """Everything is as the API server has told in this agent's life."""
        return all(part.followed.synced.is_set() for part in self._parts)

    @property
    def known(self) -> bool:
        """Everything was told, now or to a former agent."""
        return all(part.followed.synced.is_set() or part.restored for part in self._parts)

    def lacking(self) -> Iterator[StateProblem]:
        """Why it is not known, one line a cause."""
        causes: dict[str, list[str]] = {}
        for part in self._parts:
            if not (part.followed.synced.is_set() or part.restored):
                why = part.followed.problem or "the API server has not told them yet"
                causes.setdefault(why, []).append(part.resource.name)
        for why, names in causes.items():
            yield StateProblem(f"{', '.join(names)}: {why}")

    def problems(self) -> Iterator[StateProblem]:
        """What cannot be followed, one line a cause, and what cannot be read."""
        causes: dict[str, list[str]] = {}
        for part in self._parts:
            if part.followed.problem is not None:
                causes.setdefault(part.followed.problem, []).append(part.resource.name)
            elif part.restored and not part.followed.synced.is_set():
                causes.setdefault("the API server has not told them yet", []).append(part.resource.name)
        for why, names in causes.items():
            yield StateProblem(f"{', '.join(names)} cannot be followed: {why}", Concern.AWAY)
        for part in self._parts:
            for text in part.followed.unread.values():
                yield StateProblem(text, Concern.OBJECT)

    @property
    def troubled(self) -> bool:
        """Something cannot be followed."""
        return any(part.followed.problem is not None for part in self._parts)

    async def restore(self) -> None:
        """Takes what is on the disk. Tells nobody."""
        for part in self._parts:
            if part.followed.items or part.followed.version:
                continue
            found = await asyncio.to_thread(saved.load, self._directory, part.resource.plural, part.resource.type)
            if found is not None:
                part.followed.restore(found.items, found.version if part.goes_on else "")
                part.restored, part.size = True, found.size

    async def run(self) -> None:
        """Follows everything. Never ends."""
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(part.followed.run())
            group.create_task(self._look())

    async def _look(self) -> None:
        """What is wrong is told though nothing has changed."""
        before: list[str] = []
        while True:
            for part in self._parts:
                if part.followed.synced.is_set() and not part.saved_at:
                    # There may be none of them, of which nobody is told.
                    part.dirty = True
                    self._changed.set()
            now = [str(problem) for problem in (*self.lacking(), *self.problems())]
            if now != before:
                before = now
                self._woken()
            await asyncio.sleep(0.2)

    async def keep(self) -> None:
        """Keeps the copy as things are. Never ends."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.sleep(_SAVE_S)
            await self.save(all_of_it=False)

    async def save(self, *, all_of_it: bool = True) -> None:
        """Brings the copy up to date; without `all_of_it` what is large is left for later if it was just written."""
        now = asyncio.get_running_loop().time()
        for part in self._parts:
            if not part.dirty:
                continue
            if not all_of_it and part.saved_at and now - part.saved_at < part.size / (1 << 20) * _SAVE_S_PER_MIB:
                self._changed.set()
                continue
            part.dirty, part.saved_at = False, now
            try:
                part.size = await self._save(part)
                self._save_failure = ""
            except OSError as error:
                part.dirty = True
                if self._save_failure != (text := f"{self._directory}: {error.strerror or error}"):
                    self._save_failure = text
                    log.warning("what is known of the cluster cannot be saved: %s", text)

    async def _save(self, part: _Part) -> int:
        # As of now: a list, since the loop goes on while a thread writes it. Its objects never change.
        items, version = list(part.followed.items.values()), part.followed.version
        return await asyncio.to_thread(saved.save, self._directory, part.resource.plural, items, version)
