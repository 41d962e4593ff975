"""Nodes that have stopped to renew what they publish: in time that was watched, and where the Node is not ready."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from nodeseal.kubernetes.api import AwayError
from nodeseal.kubernetes.objects import Key, Meta, Node, NodeCondition, NodeStatus, Resource
from nodeseal.sources.kubernetes.renewals import SILENT_S, Renewals, WatchedTime

STEP_S = 10.0


def looks(times: WatchedTime, begin: float, seconds: float, *, signs: tuple[str, ...] = ("own",)) -> frozenset[str]:
    """Every few seconds, with a renewal of these each time; what the last look finds."""
    found: frozenset[str] = frozenset()
    now = begin
    while now < begin + seconds:
        now += STEP_S
        times.seen(signs, now)
        found = times.look({"own", "other"}, now, watching=True)
    return found


def test_node_is_silent_that_was_not_seen_for_ten_minutes_that_were_watched() -> None:
    times = WatchedTime(0)
    times.look({"own", "other"}, 0, watching=True)
    assert looks(times, 0, SILENT_S - STEP_S) == set()
    assert looks(times, SILENT_S - STEP_S, STEP_S) == {"other"}
    times.seen({"other"}, SILENT_S)
    assert looks(times, SILENT_S, SILENT_S - STEP_S) == set()


def test_time_without_a_watch_does_not_count() -> None:
    times = WatchedTime(0)
    looks(times, 0, SILENT_S - STEP_S)
    assert times.look({"own", "other"}, 10 * SILENT_S, watching=False) == set()
    assert looks(times, 10 * SILENT_S, STEP_S) == set()
    assert looks(times, 10 * SILENT_S + STEP_S, STEP_S) == {"other"}


def test_watch_that_shows_no_renewal_at_all_does_not_count_for_long() -> None:
    times = WatchedTime(0)
    times.look({"own", "other"}, 0, watching=True)
    for now in range(10, 10_000, 10):
        assert times.look({"own", "other"}, now, watching=True) == set()


def test_node_that_is_new_has_its_time() -> None:
    times = WatchedTime(0)
    looks(times, 0, SILENT_S / 2)
    times.seen({"own"}, SILENT_S)
    assert "new" not in times.look({"own", "new"}, SILENT_S, watching=True)


class Asked:
    """An API server that has Nodes."""

    def __init__(self) -> None:
        self.ready: dict[str, str | None] = {}
        self.away = False
        self.count = 0

    async def get(self, _resource: Resource[Any], key: Key) -> Node | None:
        self.count += 1
        if self.away:
            raise AwayError("away")
        ready = self.ready.get(key[1])
        if ready is None:
            return None
        return Node(Meta(key[1]), NodeStatus(conditions=[NodeCondition("Ready", ready)]))


class World:
    """Renewals, and a clock that goes by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.server = Asked()
        self.told: list[tuple[set[str], set[str]]] = []
        self.nodes = {"own", "other"}
        self.renewals = Renewals(
            self.server,  # type: ignore[arg-type]
            lambda: self.nodes,
            lambda: True,
            self._changed,
            clock=lambda: self.now,
        )

    async def _changed(self, silent: frozenset[str], expired: frozenset[str]) -> None:
        self.told.append((set(silent), set(expired)))

    async def passes(self, seconds: float, while_: Callable[[], None] = lambda: None) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            while_()
            self.renewals.seen({"own"})
            await self.renewals.look()


def test_node_that_is_silent_is_expired_when_it_is_not_ready_and_back_when_it_renews() -> None:
    async def story() -> None:
        world = World()
        world.server.ready = {"other": "True"}
        await world.passes(SILENT_S + STEP_S)
        assert world.told == [({"other"}, set())]
        world.server.ready = {"other": "Unknown"}
        await world.passes(1800)
        assert world.told[1:] == [({"other"}, {"other"})]
        world.server.ready = {"other": "True"}
        await world.passes(1800)
        assert world.told[2:] == [({"other"}, set())]
        world.server.ready = {}
        await world.passes(1800)
        assert world.told[3:] == [({"other"}, {"other"})]
        world.renewals.seen({"other"})
        await world.passes(STEP_S)
        assert world.told[4:] == [(set(), set())]

    asyncio.run(story())


def test_nothing_expires_while_nobody_can_be_asked() -> None:
    async def story() -> None:
        world = World()
        world.server.away = True
        await world.passes(2 * SILENT_S)
        assert world.told == [({"other"}, set())]
        world.server.away = False
        await world.passes(STEP_S)
        assert world.told[1:] == [({"other"}, {"other"})]

    asyncio.run(story())


def test_silent_node_is_asked_for_ever_more_seldom() -> None:
    async def story() -> None:
        world = World()
        world.server.ready = {"other": "True"}
        await world.passes(SILENT_S + STEP_S)
        counts = []
        for _time in range(6):
            world.server.count = 0
            await world.passes(600)
            counts.append(world.server.count)
        assert counts == [3, 1, 0, 1, 0, 0]
        await world.passes(3600)
        assert world.server.count == 2

    asyncio.run(story())


def test_many_silent_nodes_are_asked_for_a_few_at_a_time() -> None:
    async def story() -> None:
        world = World()
        world.nodes = {"own", *(f"n{number}" for number in range(12))}
        await world.passes(SILENT_S + STEP_S)
        assert world.server.count == 5
        await world.passes(2 * STEP_S)
        assert world.server.count == 12
        assert world.told[-1][1] == world.nodes - {"own"}

    asyncio.run(story())


def test_node_as_an_api_server_has_it_is_read() -> None:
    import msgspec

    data = json.dumps({"metadata": {"name": "n"}, "status": {"nodeInfo": {"bootID": "b"}, "conditions": []}})
    assert msgspec.json.decode(data, type=Node).boot == "b"
