"""The log of native connections: what was closed lately, and what is told to who listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Address

import pytest

from nodeseal.capture.natives import Event, Log, Native, Owner
from nodeseal.node import native_log
from nodeseal.node.native_log import NativeLog, Told

SECOND = 1_000_000_000


def event(number: int, *, closed: bool = True, when: int = 0) -> tuple[str, Event]:
    ends = (IPv4Address("10.0.0.1"), 40000), (IPv4Address("10.0.0.2"), 80)
    return "default/a", Event(Native(number, Owner(1), False, 3, *ends, 0), closed, when)


class Kernel:
    """Its log, with room for some."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.events: list[tuple[str, Event]] = []
        self.wanted = False
        self.listened_to = asyncio.Event()
        self.error: OSError | None = None

    def put(self, *events: tuple[str, Event]) -> None:
        self.events += events

    async def native_log(self, first: Sequence[int], *, wanted: bool) -> tuple[list[tuple[str, Event]], Log]:
        if self.error is not None:
            raise self.error
        self.wanted = wanted
        if wanted:
            self.listened_to.set()
        (begin,) = first or (0,)
        found = self.events[begin:][-self.room :]
        lost = len(self.events) - begin - len(found)
        return found, Log(tuple(event for _, event in found), lost, (len(self.events),))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_log, "LOOK_S", 0)


def numbers(events: list[tuple[str, Event]]) -> list[int]:
    return [one.native.cookie for _, one in events]


def test_what_was_closed_is_shown_for_a_minute() -> None:
    kernel, now = Kernel(), [0]
    log = NativeLog(kernel, lambda: now[0])
    kernel.put(event(1, when=SECOND), event(2, closed=False, when=SECOND), event(3, when=30 * SECOND))
    assert numbers(asyncio.run(log.closed())) == [1, 3]
    now[0] = 62 * SECOND
    assert numbers(asyncio.run(log.closed())) == [3]


def test_the_last_are_kept() -> None:
    kernel = Kernel()
    log = NativeLog(kernel, lambda: 0)
    kernel.put(*map(event, range(80)))
    assert numbers(asyncio.run(log.closed())) == list(range(16, 80))


def test_who_listens_is_told_of_all_that_follows_and_what_was_lost() -> None:
    kernel = Kernel(room=3)
    log = NativeLog(kernel, lambda: 0)

    async def listen() -> list[Told]:
        kernel.put(event(1))
        messages = log.heard()
        async with contextlib.aclosing(messages):
            first = asyncio.create_task(anext(messages))
            await kernel.listened_to.wait()
            kernel.put(event(2, closed=False), event(3))
            told = [await first]
            kernel.put(*map(event, range(10, 15)))
            told.append(await anext(messages))
        return told

    told = asyncio.run(listen())
    assert [numbers(one.events) for one in told] == [[2, 3], [12, 13, 14]]
    assert [one.lost for one in told] == [0, 2]
    assert not kernel.wanted
    assert numbers(asyncio.run(log.closed())) == [1, 3, 12, 13, 14]


def test_what_cannot_be_read_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    kernel.error = OSError(1, "Operation not permitted")
    assert asyncio.run(NativeLog(kernel).closed()) == []
    assert "the log of native connections cannot be read" in caplog.text
