"""In which of its node's objects a workload is published. Pure.

Every agent of the cluster gets every change of an object, whole. So an object has few workloads, and a workload stays
where it is: a change of one is a change of one object. A new one goes into the fullest object that has room, so that
few objects are half empty. When the two emptiest have room in one, they become one: what moves is in its new place
before it leaves the old one, and readers who see it in both see the same twice.

An agent that starts again goes on from what it finds published, so nothing moves then either.
"""

from __future__ import annotations

from collections.abc import Mapping

from nodeseal.mesh.workload import WorkloadName
from nodeseal.sources.kubernetes.mesh_objects import MOST_OBJECTS, PublishedWorkload

ROOM = 4
"""Workloads that one object gets. docs/kubernetes-state.md has why; readers bear four times as many."""

Shards = Mapping[int, tuple[PublishedWorkload, ...]]
"""By the number of the object, as they are published. None is empty."""

Step = tuple[int, tuple[PublishedWorkload, ...]]
"""The number of an object, and what is in it from then on; nothing: the object goes."""


class FullError(Exception):
    """There are more workloads than a node may publish; one line."""


def steps(present: Shards, wanted: Mapping[WorkloadName, PublishedWorkload], room: int = ROOM) -> list[Step]:
    """What has to be written, one object after the other, so that exactly `wanted` is published. Whatever is published
    and wanted is so after each of them too. Raises FullError."""
    contents = _kept(present, wanted)
    placed = {name for names in contents.values() for name in names}
    changed = _fill(contents, [wanted[name] for name in sorted(wanted.keys() - placed)], room)
    final = {number: dict(names) for number, names in contents.items()}
    moved = _joined(final, room)
    after = {number: _written(names) for number, names in final.items()}
    # First what comes, then what goes: a workload that moves is not absent in between.
    writes = [number for number in after if after[number] and after[number] != present.get(number, ())]
    goes = [number for number in after if not after[number] and present.get(number)]
    writes.sort(key=lambda number: (number not in changed and number not in moved, number))
    return [(number, after[number]) for number in (*writes, *sorted(goes))]


def _kept(
    present: Shards, wanted: Mapping[WorkloadName, PublishedWorkload]
) -> dict[int, dict[WorkloadName, PublishedWorkload]]:
    """What stays where it is, as it is to be by now."""
    contents: dict[int, dict[WorkloadName, PublishedWorkload]] = {}
    placed: set[WorkloadName] = set()
    for number in sorted(present):
        names = contents[number] = {}
        for one in present[number]:
            if one.key in wanted and one.key not in placed:
                names[one.key] = wanted[one.key]
                placed.add(one.key)
    return contents


def _fill(
    contents: dict[int, dict[WorkloadName, PublishedWorkload]], new: list[PublishedWorkload], room: int
) -> set[int]:
    """Gives each new one its place. The objects that have got one."""
    changed: set[int] = set()
    for one in new:
        open_ = [number for number, names in contents.items() if len(names) < room]
        number = max(open_, key=lambda number: (len(contents[number]), -number), default=None)
        if number is None:
            number = next((free for free in range(MOST_OBJECTS) if free not in contents), None)
            if number is None:
                raise FullError(f"a node may publish {room * MOST_OBJECTS} workloads, and there are more")
            contents[number] = {}
        contents[number][one.key] = one
        changed.add(number)
    return changed


def _joined(contents: dict[int, dict[WorkloadName, PublishedWorkload]], room: int) -> set[int]:
    """Puts what the two emptiest have into one, while that leaves room in it: else the next new one would part them
    again. The objects that have got something."""
    changed: set[int] = set()
    while True:
        filled = sorted((number for number in contents if contents[number]), key=lambda n: (len(contents[n]), -n))
        if len(filled) < 2 or len(contents[filled[0]]) + len(contents[filled[1]]) > room * 3 // 4:
            return changed
        emptiest, next_ = filled[:2]
        contents[next_].update(contents[emptiest])
        contents[emptiest] = {}
        changed.add(next_)


def _written(names: Mapping[WorkloadName, PublishedWorkload]) -> tuple[PublishedWorkload, ...]:
    return tuple(names[name] for name in sorted(names))
