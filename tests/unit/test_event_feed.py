"""The events of all cores of a node in one stream, and what the local API makes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from nodeseal.api import events_view
from nodeseal.api.events_view import EventStreams
from nodeseal.capture import constants
from nodeseal.capture.natives import Event as NativeEvent
from nodeseal.capture.natives import Log, Native, Owner
from nodeseal.contracts import core
from nodeseal.contracts.event_rows import EventFilter, EventRow, ReachedLimit
from nodeseal.contracts.events import Event, LimitReached, Opened, PeerRefused, Told
from nodeseal.contracts.refusal import Refusal
from nodeseal.cores import event_feed
from nodeseal.cores.client import CoreGone
from nodeseal.cores.event_feed import Heard, heard
from nodeseal.node.native_log import NativeLog
from nodeseal.node.node import Node


@dataclass
class Link:
    """A core that tells what the test puts into `queue`; None is its end."""

    generation: int
    protocol: int = core.PROTOCOL
    queue: asyncio.Queue[Told | None] = field(default_factory=asyncio.Queue)
    listeners: int = 0

    async def events(self) -> AsyncGenerator[Told, None]:
        self.listeners += 1
        try:
            while (told := await self.queue.get()) is not None:
                yield told
                self.queue.task_done()
            raise CoreGone("it ended")
        finally:
            self.listeners -= 1


class Cores:
    def __init__(self, *links: Link) -> None:
        self.all = list(links)

    def links(self) -> list[Any]:
        return self.all


def limit(number: int, workload: str = "default/a") -> LimitReached:
    return LimitReached(workload=workload, limit="connections", refused=number)


def told(*events: Event, lost: int = 0) -> Told:
    return Told(events=events, lost=lost)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(limited())


def test_events_of_all_cores_come_with_their_generation() -> None:
    async def story() -> None:
        old, new = Link(1), Link(2)
        async with contextlib.aclosing(heard(Cores(new, old))) as messages:
            old.queue.put_nowait(told(limit(1)))
            assert await anext(messages) == Heard(1, (limit(1),), 0)
            new.queue.put_nowait(told(limit(2), lost=5))
            assert await anext(messages) == Heard(2, (limit(2),), 5)

    play(story)


def test_nobody_listens_to_a_core_before_or_after(monkeypatch: Any) -> None:
    async def story() -> None:
        link = Link(1)
        messages = heard(Cores(link))
        assert link.listeners == 0
        link.queue.put_nowait(told(limit(1)))
        await anext(messages)
        assert link.listeners == 1
        await messages.aclose()
        assert link.listeners == 0

    play(story)


def test_a_core_that_comes_later_is_found_and_one_that_ends_costs_the_others_nothing(monkeypatch: Any) -> None:
    monkeypatch.setattr(event_feed, "LOOK_S", 0.01)

    async def story() -> None:
        first, second = Link(1), Link(2)
        cores = Cores(first)
        async with contextlib.aclosing(heard(cores)) as messages:
            first.queue.put_nowait(told(limit(1)))
            await anext(messages)
            first.queue.put_nowait(None)
            cores.all = [second]
            second.queue.put_nowait(told(limit(2)))
            assert await anext(messages) == Heard(2, (limit(2),), 0)

    play(story)


def test_a_core_of_an_older_protocol_is_not_asked() -> None:
    async def story() -> None:
        old, new = Link(1, protocol=core.EVENTS_SINCE - 1), Link(2)
        async with contextlib.aclosing(heard(Cores(old, new))) as messages:
            new.queue.put_nowait(told(limit(2)))
            await anext(messages)
            assert (old.listeners, new.listeners) == (0, 1)

    play(story)


def test_a_slow_listener_loses_what_finds_no_room_and_is_told_how_many() -> None:
    async def story() -> None:
        link = Link(1)
        async with contextlib.aclosing(heard(Cores(link))) as messages:
            link.queue.put_nowait(told(limit(0)))
            await anext(messages)
            for number in range(event_feed.QUEUED + 3):
                await link.queue.put(told(limit(number), limit(number)))
            await link.queue.join()
            for number in range(event_feed.QUEUED):
                assert (await anext(messages)).events[0] == limit(number)
            link.queue.put_nowait(told(limit(99)))
            assert await anext(messages) == Heard(1, (limit(99),), 6)

    play(story)


def row_of(line: msgspec.Raw) -> EventRow:
    return msgspec.json.decode(line, type=EventRow)


def node_of(link: Link, natives: Natives | None = None) -> Node:
    return cast(Node, SimpleNamespace(core=Cores(link), mesh=None, native_log=NativeLog(natives or Natives())))


class Natives:
    """The log of native connections: what is put into it while somebody listens."""

    def __init__(self) -> None:
        self.queue: list[Log] = []
        self.wanted = False

    async def native_log(self, _first: Sequence[int], *, wanted: bool) -> tuple[list[tuple[str, NativeEvent]], Log]:
        was_wanted, self.wanted = self.wanted, wanted
        found = self.queue.pop(0) if was_wanted and self.queue else Log()
        return [("default/a", event) for event in found.events], found


def rows_of(wanted: EventFilter, *messages: Told) -> list[EventRow]:
    """What the local API makes of one core's messages, up to the event "limit" with 1000 refused."""
    found: list[EventRow] = []

    async def story() -> None:
        link = Link(3)
        node = node_of(link)
        for message in (*messages, told(limit(1000))):
            link.queue.put_nowait(message)
        async with contextlib.aclosing(EventStreams(node).stream(wanted)) as batches:
            async for batch in batches:
                found.extend(map(row_of, batch))
                if found[-1].limit is not None and found[-1].limit.refused == 1000:
                    return

    play(story)
    return found[:-1]


CONNECTION = core.Connection(
    id=7, workload="default/b", direction="outbound", state="open", mtls=True, peer="spiffe://example.org/x"
)
REFUSAL = Refusal("default/a", "handshake", "inbound", "10.0.0.9", "10.0.0.1:15008", "no-certificate", 1, 5, 5)


def test_rows_say_what_happened_to_whom_and_when() -> None:
    opened, refused, lost, met = rows_of(
        EventFilter(),
        told(Opened(ago_ms=5, connection=CONNECTION), PeerRefused(refusal=REFUSAL)),
        told(limit(4), lost=9),
    )
    assert (opened.event, opened.core, opened.workload) == ("opened", 3, "default/b")
    assert opened.connection is not None
    assert (opened.connection.id, opened.connection.peer) == (7, "spiffe://example.org/x")
    assert opened.time < refused.time
    assert (refused.event, refused.workload) == ("refused", "default/a")
    assert refused.refused is not None
    assert refused.refused.reason == "no-certificate"
    assert (lost.event, lost.lost) == ("lost", 9)
    assert met.limit == ReachedLimit(limit="connections", value=None, refused=4)


def test_a_filter_passes_over_the_others_but_never_that_some_were_lost() -> None:
    happened = told(Opened(connection=CONNECTION), PeerRefused(refusal=REFUSAL), limit(4), lost=1)
    of_a = rows_of(EventFilter(workload="default/a"), happened)
    assert [row.event for row in of_a] == ["lost", "refused", "limit"]
    limits = rows_of(EventFilter(event="limit"), happened)
    assert [row.event for row in limits] == ["lost", "limit"]


def test_native_connections_are_told_too() -> None:
    ends = (IPv4Address("10.0.0.1"), 40000), (IPv4Address("10.0.0.2"), 80)
    native = Native(7, Owner(1), False, constants.NATIVE_OUTSIDE, *ends, 0)
    natives = Natives()
    natives.queue = [Log((NativeEvent(native, False, 1),)), Log((NativeEvent(native, True, 2, 5, 3),), lost=4)]
    rows: list[EventRow] = []

    async def story() -> None:
        async with contextlib.aclosing(EventStreams(node_of(Link(3), natives)).stream(EventFilter())) as batches:
            while len(rows) < 3:
                rows.extend(map(row_of, await anext(batches)))

    play(story)
    assert [(row.event, row.core, row.lost) for row in rows] == [("opened", 0, 0), ("lost", 0, 4), ("closed", 0, 0)]
    for row in (rows[0].connection, rows[2].connection):
        assert row is not None
        assert (row.id, row.workload, row.native, row.reason) == (7, "default/a", True, "outside-mesh")
    assert rows[2].connection is not None
    assert (rows[2].connection.bytes_sent, rows[2].connection.bytes_received) == (5, 3)
    assert not natives.wanted


def test_rows_are_made_once_for_all_who_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise many listeners to a busy node leave its agent no time."""
    made = []

    def making(*arguments: Any) -> EventRow:
        made.append(1)
        return row(*arguments)

    row = events_view._row
    monkeypatch.setattr(events_view, "_row", making)

    async def story() -> None:
        link = Link(3)
        streams = EventStreams(node_of(link))
        listeners = [streams.stream(EventFilter(workload=f"default/{name}")) for name in "aaab"]
        first = [asyncio.ensure_future(anext(listener)) for listener in listeners]
        await asyncio.sleep(0)
        link.queue.put_nowait(told(limit(1), limit(2), limit(3, "default/b")))
        found = [[row_of(line) for line in await one] for one in first]
        assert [[one.limit.refused for one in rows if one.limit is not None] for rows in found] == [[1, 2]] * 3 + [[3]]
        assert (len(made), link.listeners) == (3, 1)
        for listener in listeners:
            assert link.listeners == 1
            await listener.aclose()
        assert link.listeners == 0

    play(story)


def test_a_stream_that_is_not_read_loses_for_itself_alone() -> None:
    async def story() -> None:
        link = Link(3)
        streams = EventStreams(node_of(link))
        slow, quick = streams.stream(EventFilter()), streams.stream(EventFilter())
        first = [asyncio.ensure_future(anext(one)) for one in (slow, quick)]
        await asyncio.sleep(0)
        link.queue.put_nowait(told(limit(0)))
        await asyncio.gather(*first)
        for number in range(1, event_feed.QUEUED + 4):
            link.queue.put_nowait(told(limit(number), limit(number)))
            assert len(await anext(quick)) == 2
        assert len(await anext(slow)) == 2 * event_feed.QUEUED
        link.queue.put_nowait(told(limit(99)))
        lost, last = map(row_of, await anext(slow))
        assert (lost.event, lost.lost, lost.core) == ("lost", 6, 3)
        assert last.limit is not None
        assert last.limit.refused == 99
        assert len(await anext(quick)) == 1
        await slow.aclose()
        await quick.aclose()

    play(story)


def test_a_fault_in_the_agent_ends_all_streams_and_the_next_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        link = Link(3)
        streams = EventStreams(node_of(link))
        with monkeypatch.context() as patched:
            patched.setattr(events_view, "_row", lambda *_: 1 / 0)
            ended = [asyncio.ensure_future(anext(streams.stream(EventFilter()))) for _ in range(3)]
            await asyncio.sleep(0)
            link.queue.put_nowait(told(limit(1)))
            errors = await asyncio.gather(*ended, return_exceptions=True)
        assert [type(error) for error in errors] == [ZeroDivisionError] * 3
        following = asyncio.ensure_future(anext(streams.stream(EventFilter())))
        await asyncio.sleep(0)
        link.queue.put_nowait(told(limit(2)))
        assert [row_of(line).event for line in await following] == ["limit"]

    play(story)
