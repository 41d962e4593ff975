"""Events of a node's cores, and of its native connections, as the local API tells them.

Rows and their JSON are made once, whoever listens: making them is most of the work, and many listeners on a busy node
would leave the agent no time for anything else. What is left for each is to choose its lines, and a queue of at most
QUEUED messages; a listener that is slower loses what finds no room, and is told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from nodeseal.api.connections_view import closed_native, native_row, refused_row, through_core
from nodeseal.capture.natives import Event
from nodeseal.clock import utc_now
from nodeseal.contracts import events
from nodeseal.contracts.event_rows import EventFilter, EventRow, ReachedLimit
from nodeseal.cores.event_feed import QUEUED, Heard, heard
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.node.native_log import Told
from nodeseal.node.node import Node

LOST = "lost"

_encode = msgspec.json.Encoder().encode


class _Line(NamedTuple):
    """A row with what it is chosen by; `row` is its JSON."""

    event: str
    workload: str | None
    row: msgspec.Raw


class _Message(NamedTuple):
    """What a core told at once, or 0: what was told of native connections; `events`: how many, without the line that
    says that some were lost."""

    core: int
    events: int
    lines: list[_Line]


class _Listener:
    """One stream of events."""

    def __init__(self, wanted: EventFilter) -> None:
        self._wanted = wanted
        self._queue: asyncio.Queue[_Message | Exception] = asyncio.Queue(QUEUED)
        self._lost: Counter[int] = Counter()
        """Core -> how many events found no room and were not told of yet."""

    def put(self, message: _Message) -> None:
        if self._queue.full():
            self._lost[message.core] += message.events
            return
        if lost := self._lost.pop(message.core, 0):
            line = _line(EventRow(event=LOST, time=_time(utc_now(), 0), core=message.core, lost=lost))
            message = message._replace(lines=[line, *message.lines])
        self._queue.put_nowait(message)

    def end(self, error: Exception) -> None:
        """Nothing comes any more."""
        while self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    async def rows(self) -> list[msgspec.Raw]:
        """All that is there and wanted; waits for some. Raises what `end` was given."""
        shown: list[msgspec.Raw] = []
        while not shown or not self._queue.empty():
            message = await self._queue.get()
            if isinstance(message, Exception):
                raise message
            shown += [line.row for line in message.lines if self._is_wanted(line)]
        return shown

    def _is_wanted(self, line: _Line) -> bool:
        if line.event == LOST:
            return True
        return self._wanted.workload in (None, line.workload) and self._wanted.event in (None, line.event)


class EventStreams:
    """What all who listen to a node are told. Cores, and the log of native connections, are listened to as long as
    anybody does."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._listeners: set[_Listener] = set()
        self._following: asyncio.Task[None] | None = None

    async def stream(self, wanted: EventFilter) -> AsyncGenerator[list[msgspec.Raw], None]:
        """Everything from now on that is wanted, each an EventRow. Never ends by itself."""
        listener = _Listener(wanted)
        self._listeners.add(listener)
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name="events")
        try:
            while True:
                yield await listener.rows()
        finally:
            self._listeners.discard(listener)
            following = self._following
            if not self._listeners and following is not None:
                self._following = None
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_cores())
                group.create_task(self._follow_natives())
        except ExceptionGroup as failed:
            self._following = None
            for listener in self._listeners:
                listener.end(failed.exceptions[0])

    async def _follow_cores(self) -> None:
        async with contextlib.aclosing(heard(self._node.core)) as messages:
            async for message in messages:
                self._put(_message(self._node.mesh, message))

    async def _follow_natives(self) -> None:
        async with contextlib.aclosing(self._node.native_log.heard()) as messages:
            async for told in messages:
                self._put(_native_message(self._node.mesh, told))

    def _put(self, message: _Message) -> None:
        for listener in self._listeners:
            listener.put(message)


def _native_message(mesh: Mesh | None, told: Told) -> _Message:
    now, clock = utc_now(), time.monotonic_ns()
    rows = [_native_row(mesh, WorkloadName.parse(name), event, now, clock) for name, event in told.events]
    if told.lost:
        rows.insert(0, EventRow(event=LOST, time=_time(now, 0), lost=told.lost))
    return _Message(0, len(told.events) + told.lost, list(map(_line, rows)))


def _native_row(mesh: Mesh | None, name: WorkloadName, event: Event, now: datetime, clock: int) -> EventRow:
    row = closed_native(mesh, name, event) if event.closed else native_row(mesh, name, event.native, 0, 0)
    return EventRow(
        event="closed" if event.closed else "opened",
        time=_time(now, (clock - event.when) // 1_000_000),
        workload=str(name),
        connection=row,
    )


def _message(mesh: Mesh | None, message: Heard) -> _Message:
    now = utc_now()
    rows = [_row(mesh, one, message.generation, now) for one in message.events]
    if message.lost:
        rows.insert(0, EventRow(event=LOST, time=_time(now, 0), core=message.generation, lost=message.lost))
    return _Message(message.generation, len(message.events) + message.lost, list(map(_line, rows)))


def _line(row: EventRow) -> _Line:
    return _Line(row.event, row.workload, msgspec.Raw(_encode(row)))


def _row(mesh: Mesh | None, event: events.Event, generation: int, now: datetime) -> EventRow:
    time = _time(now, event.ago_ms)
    match event:
        case events.PeerRefused(refusal=refusal):
            refused = refused_row(mesh, refusal, now)
            return EventRow(event="refused", time=time, core=generation, workload=refusal.workload, refused=refused)
        case events.LimitReached():
            limit = ReachedLimit(limit=event.limit, value=event.value or None, refused=event.refused)
            return EventRow(event="limit", time=time, core=generation, workload=event.workload, limit=limit)
        case events.Opened() | events.Closed() | events.Failed():
            row = through_core(mesh, event.connection, generation)
            name = type(event).__struct_config__.tag
            return EventRow(
                event=str(name), time=time, core=generation, workload=event.connection.workload, connection=row
            )


def _time(now: datetime, ago_ms: int) -> str:
    return (now - timedelta(milliseconds=ago_ms)).isoformat(timespec="milliseconds")
