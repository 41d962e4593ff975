"""Events of a node's cores as the local API tells them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta

from nodeseal.api.connections_view import refused_row, through_core
from nodeseal.clock import utc_now
from nodeseal.contracts import events
from nodeseal.contracts.event_rows import EventFilter, EventRow, ReachedLimit
from nodeseal.cores.event_feed import heard
from nodeseal.mesh.model import Mesh
from nodeseal.node.node import Node

LOST = "lost"


async def stream(node: Node, wanted: EventFilter) -> AsyncGenerator[list[EventRow], None]:
    """Everything from now on that is wanted. Never ends by itself."""
    async with contextlib.aclosing(heard(node.core)) as messages:
        async for generation, happened, lost in messages:
            now = utc_now()
            rows = [EventRow(event=LOST, time=_time(now, 0), core=generation, lost=lost)] if lost else []
            rows += [_row(node.mesh, one, generation, now) for one in happened]
            if shown := [row for row in rows if _is_wanted(row, wanted)]:
                yield shown


def _is_wanted(row: EventRow, wanted: EventFilter) -> bool:
    if row.event == LOST:
        return True
    return wanted.workload in (None, row.workload) and wanted.event in (None, row.event)


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
