"""Which object of its node a workload is published in: whatever comes and goes, everything wanted is published after
each write, and what stays does not move without need."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import pytest

from nodeseal.mesh.workload import Mode, Phase, Workload, WorkloadName
from nodeseal.sources.kubernetes import shards
from nodeseal.sources.kubernetes.mesh_objects import PublishedWorkload, write_workload
from nodeseal.sources.kubernetes.shards import ROOM, FullError, steps

Present = dict[int, tuple[PublishedWorkload, ...]]
Wanted = dict[WorkloadName, PublishedWorkload]


def published(number: int, mode: Mode = Mode.PERMISSIVE) -> PublishedWorkload:
    name = WorkloadName("default", f"w{number:04}")
    address = IPv4Address(f"10.0.{number // 250}.{number % 250 + 1}")
    return write_workload(Workload(name, "a", "n1", (address,), None, True, mode, Phase.ENROLLED))


def of(*numbers: int) -> Wanted:
    return {one.key: one for one in map(published, numbers)}


def play(present: Present, wanted: Wanted, room: int = ROOM) -> int:
    """Takes the steps, and looks at what is published after each. Their number."""
    before = {one.key: one for workloads in present.values() for one in workloads}
    taken = steps(present, wanted, room)
    for number, workloads in taken:
        if workloads:
            present[number] = workloads
        else:
            del present[number]
        there = {one.key for workloads in present.values() for one in workloads}
        assert before.keys() & wanted.keys() <= there, "absent in between"
        assert all(len(workloads) <= room for workloads in present.values())
    everything = [one for workloads in present.values() for one in workloads]
    assert len(everything) == len(wanted), "one is in two objects"
    assert {one.key: one for one in everything} == wanted
    assert steps(present, wanted, room) == []
    return len(taken)


def test_change_of_one_workload_is_a_change_of_one_object() -> None:
    present: Present = {}
    wanted = of(*range(40))
    play(present, wanted)
    assert len(present) == 40 // ROOM
    strict = published(17, Mode.STRICT)
    assert play(present, {**wanted, strict.key: strict}) == 1
    assert play(present, wanted) == 1
    assert play(present, {name: one for name, one in wanted.items() if name != strict.key}) == 1
    assert play(present, wanted) == 1


def test_workload_stays_where_it_is_though_others_come_and_go() -> None:
    present: Present = {}
    play(present, of(*range(2 * ROOM)))
    before = {one.key: number for number, workloads in present.items() for one in workloads}
    play(present, of(*range(1, 2 * ROOM), 100, 101))
    after = {one.key: number for number, workloads in present.items() for one in workloads}
    assert {name: after[name] for name in before.keys() & after.keys()} == {
        name: before[name] for name in before.keys() & after.keys()
    }


def test_new_one_goes_where_others_are_and_not_into_one_of_its_own() -> None:
    present: Present = {3: (published(1),), 7: tuple(map(published, range(2, 1 + ROOM)))}
    play(present, of(*range(1, 2 + ROOM)))
    assert len(present[7]) == ROOM
    assert present[3] == (published(1),)


def test_the_two_emptiest_become_one() -> None:
    present: Present = {0: (published(1),), 1: (published(2),), 2: tuple(map(published, range(3, 3 + ROOM)))}
    assert play(present, of(1, 2, *range(3, 3 + ROOM))) == 2
    assert sorted(map(len, present.values())) == [2, ROOM]


def test_what_comes_is_written_before_what_goes() -> None:
    """An address may have changed hands: for a moment it is contested, which refuses, and not nobody's."""
    present: Present = {0: tuple(map(published, range(ROOM))), 1: tuple(map(published, range(ROOM, 2 * ROOM)))}
    (first, second) = steps(present, of(*range(1, 2 * ROOM - 1), 100), ROOM)
    assert published(100) in first[1]
    assert published(100) not in second[1]


def test_object_that_has_more_than_it_gets_keeps_them_until_they_go() -> None:
    """Another version of the agent may have put more into one."""
    present: Present = {0: tuple(map(published, range(2 * ROOM)))}
    wanted = of(*range(2 * ROOM))
    assert steps(present, wanted, ROOM) == []
    ((number, workloads),) = steps(present, {**wanted, **of(100)}, ROOM)
    assert (number, workloads) == (1, (published(100),))


def test_workload_that_is_in_two_objects_stays_in_one() -> None:
    present: Present = {0: (published(1), published(2)), 1: (published(2), published(3), published(4))}
    play(present, of(1, 2, 3, 4))


def test_there_is_an_end_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_OBJECTS", 2)
    steps({}, of(*range(2 * ROOM)), ROOM)
    with pytest.raises(FullError, match=f"may publish {2 * ROOM} workloads, and there are more"):
        steps({}, of(*range(2 * ROOM + 1)), ROOM)


@pytest.mark.parametrize("room", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_random_changes(room: int, seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311
    present: Present = {}
    wanted: Wanted = {}
    writes = changes = 0
    for turn in range(300):
        how_many = chosen.choice([1, 1, 1, 1, 5, 40] if turn % 50 < 5 else [1])
        for _one in range(how_many):
            changes += 1
            if wanted and chosen.random() < (0.5 if len(wanted) < 110 else 0.9):
                del wanted[chosen.choice(sorted(wanted))]
            else:
                new = published(chosen.randrange(1000), chosen.choice(list(Mode)))
                wanted[new.key] = new
        writes += play(present, wanted, room)
        small = sorted(map(len, present.values()))[:2]
        assert len(small) < 2 or sum(small) > room * 3 // 4, "two half empty objects"
    assert writes <= 1.5 * changes
