"""The model, put together of what comes object by object.

What changes costs the time for what changes, and a copy of the indexes, however often it is told in between. Who may
write objects of Kubernetes can write some that cannot be in one model with others: those are left out and named, and
tried again with every change; where they are so many that it takes long, after some of the changes, so that whoever
wrote them does not have the agent do nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any

from nodeseal.mesh.kinds import Kind
from nodeseal.mesh.model import Mesh, MeshDifference, MeshError
from nodeseal.mesh.workload import WORKLOADS, Phase, Workload, WorkloadName

_AT_ONCE = 500
"""Objects that are put in without a pause: some milliseconds."""

_FEW, _SHORT_S = 16, 0.05
"""What is left out is tried again with every change as long as it is no more, or takes no longer,"""
_SHARE = 20
"""and otherwise in one part of the time."""

_Entry = tuple[str, Hashable]


class Assembly:
    """`mesh`: as of the last `flush`. A workload of this node is as its pod says, any other as its node has published
    it."""

    def __init__(self, trust_domain: str, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises MeshError for what is no trust domain."""
        self._clock = clock
        self._not_before = float("-inf")
        """When what is left out is tried again."""
        self.mesh = Mesh.from_difference(MeshDifference(trust_domain))
        self._node = node
        self._dirty: dict[_Entry, Any | None] = {}
        self._under_way: Mapping[_Entry, Any | None] = {}
        """What is being put in: of these the model may still say what was before."""
        self._left_out: dict[_Entry, tuple[Any, str]] = {}
        self._own: dict[WorkloadName, Workload] = {}
        self._published: dict[WorkloadName, Workload] = {}

    def put(self, kind: Kind[Any, Any], key: Hashable, item: Any | None) -> None:
        """The object of this key; None: there is none."""
        entry = kind.name, key
        open_ = entry in self._dirty or entry in self._under_way or entry in self._left_out
        if open_ or self.mesh.of(kind).get(key) != item:
            self._dirty[entry] = item

    def replace(self, kind: Kind[Any, Any], items: Mapping[Any, Any]) -> None:
        """All objects of a kind."""
        for key in self.mesh.of(kind).keys() - items.keys():
            self.put(kind, key, None)
        for key, item in items.items():
            self.put(kind, key, item)

    def put_own(self, name: WorkloadName, workload: Workload | None) -> None:
        """A pod of this node, whatever its phase here; None: there is none of this name."""
        _put(self._own, name, workload)
        self._settle(name)

    def put_published(self, name: WorkloadName, workload: Workload | None) -> None:
        """A workload as a node has published it, this one or another."""
        _put(self._published, name, workload)
        self._settle(name)

    @property
    def own(self) -> Collection[WorkloadName]:
        """The names of this node's."""
        return self._own.keys()

    def _settle(self, name: WorkloadName) -> None:
        own, published = self._own.get(name), self._published.get(name)
        if own is not None:
            said = published is not None and published.node == self._node
            self.put(WORKLOADS, name, own.in_phase(Phase.ENROLLED if said else Phase.ABSENT))
        elif published is not None and published.node != self._node:
            self.put(WORKLOADS, name, published)
        else:
            self.put(WORKLOADS, name, None)

    @property
    def changed(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._dirty)

    async def flush(self) -> bool:
        """Puts in what was told since, and returns whether the model is another one."""
        before = self.mesh
        if self._dirty:
            since = self._clock()
            again = self._left_out if since >= self._not_before else {}
            changes = {**{entry: item for entry, (item, _) in again.items()}, **self._dirty}
            left_out = self._left_out
            self._left_out = {entry: one for entry, one in left_out.items() if entry not in changes}
            self._dirty, self._under_way = {}, changes
            try:
                await self._put_in(changes)
            except BaseException:
                # Whoever takes the model may go at any moment, and come again: what was told is not told again.
                self._dirty = {**changes, **self._dirty}
                raise
            finally:
                self._under_way = {}
            if (took := self._clock() - since) > _SHORT_S and len(self._left_out) > _FEW:
                self._not_before = self._clock() + took * _SHARE
        return self.mesh is not before

    async def _put_in(self, changes: Mapping[_Entry, Any | None]) -> None:
        # What goes, goes first: what comes may have its address by now.
        await self._apply_all(sorted(changes.items(), key=lambda one: one[1] is not None))
        here = {entry: item for entry, (item, _) in self._left_out.items() if entry in changes}
        if here and len(changes) > _AT_ONCE:
            # What stood in the way may have gone in a later part.
            for entry in here:
                del self._left_out[entry]
            await self._apply_all(list(here.items()))

    async def _apply_all(self, entries: list[tuple[_Entry, Any | None]]) -> None:
        for first in range(0, len(entries), _AT_ONCE):
            await self._apply(entries[first : first + _AT_ONCE])
            if first + _AT_ONCE < len(entries):
                await asyncio.sleep(0)

    def problems(self) -> Iterator[str]:
        """What is left out, one line each."""
        for (kind, key), (_, why) in sorted(self._left_out.items(), key=str):
            yield f"{kind}: {key} is left out: {why}"

    async def _apply(self, entries: list[tuple[_Entry, Any | None]]) -> None:
        try:
            self.mesh = self.mesh.apply(_difference(self.mesh, entries))
        except MeshError as error:
            if len(entries) > 1:
                middle = len(entries) // 2
                await asyncio.sleep(0)
                await self._apply(entries[:middle])
                await self._apply(entries[middle:])
                return
            ((entry, item),) = entries
            self._left_out[entry] = (item, str(error))
            # As it was before it may be wrong by now as well: it is in the model as it is, or not at all.
            self.mesh = self.mesh.apply(_difference(self.mesh, [(entry, None)]))


def _put(items: dict[WorkloadName, Workload], name: WorkloadName, workload: Workload | None) -> None:
    if workload is None:
        items.pop(name, None)
    else:
        items[name] = workload


def _difference(mesh: Mesh, entries: Iterable[tuple[_Entry, Any | None]]) -> MeshDifference:
    put: dict[str, list[Any]] = {}
    removed: dict[str, list[Any]] = {}
    for (kind, key), item in entries:
        if item is not None:
            put.setdefault(kind, []).append(item)
        elif key in mesh.tables[kind].items:
            removed.setdefault(kind, []).append(key)
    return MeshDifference(
        mesh.trust_domain,
        {kind: tuple(items) for kind, items in put.items()},
        {kind: tuple(keys) for kind, keys in removed.items()},
    )
