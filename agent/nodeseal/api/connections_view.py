"""The connections of a node's workloads as the local API tells them: what the cores carry, then what goes past them.

They come in the order of their positions, in batches, so that a listing can be read in pages and as a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import NamedTuple, Self

from msgspec import structs

from nodeseal.api.exchange import RequestError
from nodeseal.capture.natives import Event, Native
from nodeseal.capture.workload import Captured
from nodeseal.clock import utc_now
from nodeseal.contracts import core
from nodeseal.contracts.api import PAGE, PAGE_MAX
from nodeseal.contracts.connections import (
    ConnectionFilter,
    ConnectionRow,
    Connections,
    Refused,
    RefusedFilter,
    RefusedRow,
)
from nodeseal.contracts.core import Connection
from nodeseal.contracts.refusal import Refusal, merged
from nodeseal.contracts.rows import Incomplete
from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.link import CoreLink
from nodeseal.enrolment.workload import Enrolment
from nodeseal.linux.sock_diag import Direct, DirectError, Endpoint
from nodeseal.mesh import decide
from nodeseal.mesh.address import Address, AddressError, OriginalDestination, SourceAddress, parse_address
from nodeseal.mesh.fronts import Found, front_at
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.mesh.reasons import WhyPlaintext
from nodeseal.node import natives
from nodeseal.node.node import Node

_CORE_PATIENCE_S = 6.0
_ID_MAX = 2**63 - 1

Line = ConnectionRow | Incomplete
"""A row, or what could not be listed."""


class Position(NamedTuple):
    """Where a connection stands in the listing: by core and number, behind them those past the core by their ends, and
    by the numbers of native ones. It keeps its place as long as it is there, so a page goes on behind the one before,
    whatever came and went."""

    past_core: bool
    core: int
    id: int
    workload: str
    source: str
    destination: str
    socket: int = 0

    @classmethod
    def of(cls, row: ConnectionRow) -> Self:
        """Of a row."""
        if row.core is not None:
            return cls(False, row.core, row.id or 0, "", "", "")
        return cls(True, 0, 0, row.workload or "", row.source, row.destination, row.id or 0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From str(position). Raises RequestError."""
        kind, *parts = text.split(",")
        try:
            if kind == "core":
                core, number = map(int, parts)
                if core >= 0 and 0 <= number < _ID_MAX:
                    return cls(False, core, number, "", "", "")
            if kind == "past":
                workload, source, destination, *socket = parts
                return cls(True, 0, 0, workload, source, destination, *map(int, socket))
        except (ValueError, TypeError):
            pass
        raise RequestError(HTTPStatus.BAD_REQUEST, f"parameter 'after': {text!r} is not the 'next' of a page")

    def __str__(self) -> str:
        if self.past_core:
            socket = f",{self.socket}" if self.socket else ""
            return f"past,{self.workload},{self.source},{self.destination}{socket}"
        return f"core,{self.core},{self.id}"


def beginning(wanted: ConnectionFilter) -> Position | None:
    """Behind which row a listing begins; None: with the first. Raises RequestError."""
    return Position.parse(wanted.after) if wanted.after is not None else None


async def page(node: Node, wanted: ConnectionFilter, after: Position | None) -> Connections:
    """The first rows behind `after` that are wanted. Raises CoreError, TimeoutError when the core does not answer."""
    limit = min(wanted.limit or PAGE, PAGE_MAX)
    rows: list[ConnectionRow] = []
    errors: list[str] = []
    async with contextlib.aclosing(listing(node, wanted, after, limit + 1)) as batches:
        async for batch in batches:
            rows += [line for line in batch if isinstance(line, ConnectionRow)]
            errors += [line.error for line in batch if isinstance(line, Incomplete)]
    return Connections(
        node=node.config.node,
        trust_domain=node.trust_domain,
        connections=rows[:limit],
        errors=errors,
        next=str(Position.of(rows[limit - 1])) if len(rows) > limit else None,
    )


async def listing(
    node: Node, wanted: ConnectionFilter, after: Position | None, limit: int | None
) -> AsyncGenerator[list[Line], None]:
    """All rows behind `after` that are wanted, at most `limit`. Raises as page()."""
    async for batch in _lines(node, wanted, after, limit):
        lines = [line for line in batch if isinstance(line, Incomplete) or _is_wanted(line, wanted, after)]
        if limit is not None:
            lines = lines[:limit]
            limit -= sum(isinstance(line, ConnectionRow) for line in lines)
        yield lines
        if limit == 0:
            return


def _is_wanted(row: ConnectionRow, wanted: ConnectionFilter, after: Position | None) -> bool:
    return (
        not (wanted.live and row.state == "closed")
        and wanted.workload in (None, row.workload)
        and wanted.direction in (None, row.direction)
        and (wanted.anchor is None or _is_verified_by(row, wanted.anchor))
        and (after is None or Position.of(row) > after)
    )


def _is_verified_by(row: ConnectionRow, anchor: str) -> bool:
    """Rows have the beginning of its fingerprint, and so may have whoever asks."""
    return row.anchor is not None and (row.anchor.startswith(anchor) or anchor.startswith(row.anchor))


async def _lines(
    node: Node, wanted: ConnectionFilter, after: Position | None, limit: int | None
) -> AsyncGenerator[list[Line], None]:
    """In the order of their positions; more than is wanted may be among them."""
    if after is None or not after.past_core:
        current = node.core.current
        if current is None:
            raise CoreGone(node.core.error or "the core is not running")
        for link in sorted({current, *node.core.links()}, key=lambda link: link.generation):
            try:
                async for rows in _core_rows(link, wanted, after, limit):
                    yield [through_core(node.mesh, row, link.generation) for row in rows]
            except CoreError:
                if link is current:
                    raise
                # It has ended meanwhile, with its last connection.
    if wanted.anchor is not None:
        return  # past the cores nobody is verified
    noted, closed = None, await node.native_log.closed()
    for name, enrolment in sorted(node.enrolments.items()):
        if wanted.workload not in (None, str(name)) or (after is not None and str(name) < after.workload):
            continue
        if enrolment.installed is None:
            continue
        try:
            directs = await node.capture.direct(enrolment.installed.captured)
            if noted is None:
                noted = await node.capture.natives()
            ours = noted.get(str(name), {})
            if any(direct.cookie not in ours for direct in directs):
                directs, ours = await _looked_again(node, enrolment.installed.captured, str(name), directs)
        except (DirectError, OSError) as error:
            yield [Incomplete(error=f"{name}: connections past the core cannot be listed: {error}")]
            continue
        past = [
            past_core(node, enrolment, direct, ours.get(direct.cookie))
            for direct in directs
            # While it drains, what is new goes past the core as well, and nothing tells it from what is older.
            if direct.cookie in ours or not enrolment.installed.draining
        ]
        past += [closed_native(node.mesh, enrolment.name, event) for whose, event in closed if whose == str(name)]
        past.sort(key=Position.of)
        yield [*past]


async def _looked_again(
    node: Node, captured: Captured, name: str, directs: list[Direct]
) -> tuple[list[Direct], dict[int, Native]]:
    """The connections, and which of them are noted as native: a look at sockets and one at notes are two moments. What
    was opened before the first is noted by now, unless it has ended; what is there still, and is not, never was."""
    ours = (await node.capture.natives()).get(name, {})
    there = {direct.cookie for direct in await node.capture.direct(captured)}
    return [direct for direct in directs if direct.cookie in ours or direct.cookie in there], ours


async def _core_rows(
    link: CoreLink, wanted: ConnectionFilter, after: Position | None, limit: int | None
) -> AsyncGenerator[list[Connection], None]:
    """What a core has behind `after`, in parts. What it is asked for is as little as it can leave out itself."""
    first: int | None = 0
    if after is not None:
        if link.generation < after.core:
            return
        first = after.id + 1 if link.generation == after.core else 0
    while first is not None:
        question = core.Connections(
            first=first,
            limit=min(limit or PAGE, PAGE),
            live=wanted.live,
            workload=wanted.workload,
            direction=wanted.direction,
        )
        async with asyncio.timeout(_CORE_PATIENCE_S):
            rows, first = await link.call(CoreClient.connections, question)
        yield rows


async def refused(node: Node, wanted: RefusedFilter) -> Refused:
    """Those of the last day. Raises CoreError, TimeoutError when the core does not answer."""
    async with asyncio.timeout(_CORE_PATIENCE_S):
        answers = await node.core.call_all(CoreClient.refusals)
    found = merged([*node.natives.refusals(), *(refusal for _link, refusals in answers for refusal in refusals)])
    rows = [refused_row(node.mesh, refusal, utc_now()) for refusal in found]
    return Refused(
        node=node.config.node,
        trust_domain=node.trust_domain,
        refused=[
            row for row in rows if wanted.workload in (None, row.workload) and wanted.direction in (None, row.direction)
        ],
    )


def through_core(mesh: Mesh | None, row: Connection, generation: int) -> ConnectionRow:
    """Of a connection that the core of this generation has."""
    closed = row.state == "closed"
    # At an address that processes of a node share, the port of one that dials tells nothing.
    own = row.workload if row.direction == "outbound" else None
    return ConnectionRow(
        id=row.id,
        core=generation,
        workload=row.workload,
        direction=row.direction,
        source=row.source,
        source_workload=_name_of(mesh, row.source) or own,
        destination=row.destination,
        destination_workload=_name_of_dialled(mesh, row.destination),
        endpoint=row.endpoint,
        endpoint_workload=_name_of(mesh, row.endpoint),
        state=row.state,
        mtls=row.mtls,
        peer=row.peer or None,
        tls=row.tls or None,
        group=row.group or None,
        signature=row.signature or None,
        anchor=row.anchor or None,
        reason=row.reason or None,
        bytes_sent=row.bytes_sent,
        bytes_received=row.bytes_received,
        age_seconds=row.age_ms / 1000,
        closed_seconds=row.closed_ms / 1000 if closed else None,
    )


def refused_row(mesh: Mesh | None, refusal: Refusal, now: datetime) -> RefusedRow:
    """The times are of the first and the last refusal that it stands for."""
    host = f"[{refusal.source}]" if ":" in refusal.source else refusal.source
    own = refusal.workload if refusal.direction == "outbound" else None
    return RefusedRow(
        workload=refusal.workload,
        direction=refusal.direction,
        kind=refusal.kind,
        status=refusal.status or None,
        source=refusal.source,
        source_workload=own or _name_of(mesh, f"{host}:0"),
        destination=refusal.destination,
        destination_workload=_name_of(mesh, refusal.destination),
        peer=refusal.peer or None,
        reason=refusal.reason,
        presented=refusal.presented or None,
        expected=refusal.expected or None,
        count=refusal.count,
        first=(now - timedelta(milliseconds=refusal.first_ms)).isoformat(timespec="seconds"),
        last=(now - timedelta(milliseconds=refusal.last_ms)).isoformat(timespec="seconds"),
        first_seconds=refusal.first_ms / 1000,
        last_seconds=refusal.last_ms / 1000,
    )


def past_core(node: Node, enrolment: Enrolment, direct: Direct, native: Native | None = None) -> ConnectionRow:
    """Of a connection of the workload that the core does not see; `native`: what the kernel has noted of it."""
    if native is not None:
        return native_row(node.mesh, enrolment.name, native, direct.bytes_sent, direct.bytes_received)
    ends = (direct.remote, direct.local) if direct.inbound else (direct.local, direct.remote)
    reason = _why_past_core(node, enrolment, direct)
    return _row_past(node.mesh, enrolment.name, direct.inbound, ends, reason, direct.bytes_sent, direct.bytes_received)


def native_row(
    mesh: Mesh | None, name: WorkloadName, native: Native, sent: int | None, received: int | None
) -> ConnectionRow:
    """Of a native connection of the workload; what it has sent and received."""
    ends, reason = (native.source, native.destination), natives.why(mesh, name, native)
    row = _row_past(mesh, name, native.inbound, ends, reason, sent, received)
    age = (time.monotonic_ns() - native.opened) / 1e9
    return structs.replace(row, id=native.cookie, native=True, age_seconds=age)


def closed_native(mesh: Mesh | None, name: WorkloadName, event: Event) -> ConnectionRow:
    """Of a native connection of the workload that has been closed."""
    row = native_row(mesh, name, event.native, event.acknowledged, event.received)
    ago = (time.monotonic_ns() - event.when) / 1e9
    return structs.replace(row, state="closed", closed_seconds=ago)


def _row_past(
    mesh: Mesh | None,
    name: WorkloadName,
    inbound: bool,
    ends: tuple[Endpoint, Endpoint],
    reason: WhyPlaintext | None,
    sent: int | None,
    received: int | None,
) -> ConnectionRow:
    source, destination = (str(SourceAddress(*end)) for end in ends)
    return ConnectionRow(
        workload=str(name),
        direction="inbound" if inbound else "outbound",
        source=source,
        source_workload=_name_of(mesh, source),
        destination=destination,
        destination_workload=_name_of_dialled(mesh, destination),
        endpoint=destination,
        endpoint_workload=_name_of(mesh, destination),
        state="open",
        reason=reason.value if reason is not None else None,
        # Counted for the dialling application, as the core does.
        bytes_sent=received if inbound else sent,
        bytes_received=sent if inbound else received,
    )


def _why_past_core(node: Node, enrolment: Enrolment, direct: Direct) -> WhyPlaintext:
    """What lets it pass by the core now. (Nothing on a socket tells what did when it was opened.)"""
    mesh = node.mesh
    here = mesh.workloads.get(enrolment.name) if mesh is not None else None
    (remote, remote_port), local_port = direct.remote, direct.local[1]
    why = None
    if mesh is not None and here is not None:
        if direct.inbound:
            why = decide.excluded_inbound(mesh, here, remote, local_port)
        else:
            why = decide.excluded_outbound(mesh, here, OriginalDestination(remote, remote_port))
            if why is None and node.bypass.is_outside(mesh, remote):
                why = WhyPlaintext.OUTSIDE_MESH
    if why is not None:
        return why
    if direct.mark != 0:
        return WhyPlaintext.APPLICATION_MARK
    if direct.inbound and node.bypass.is_node(remote):
        return WhyPlaintext.FROM_NODE
    return WhyPlaintext.OPENED_BEFORE_ENROLMENT


def _name_of_dialled(mesh: Mesh | None, destination: str) -> str | None:
    """The same, but by a service's front there if there is one."""
    if mesh is not None and (place := _place(destination)) is not None:
        found = front_at(mesh, *place)
        if isinstance(found, Found):
            return str(found.service.key)
    return _name_of(mesh, destination)


def _name_of(mesh: Mesh | None, endpoint: str) -> str | None:
    """ "ns/name" of the workload or service at "address:port", or None."""
    if mesh is None or (place := _place(endpoint)) is None:
        return None
    address, port = place
    known = mesh.by_address.get(address) or mesh.service_by_address.get(address) or mesh.host_at(address, port)
    return str(known.key) if known is not None else None


def _place(text: str) -> tuple[Address, int] | None:
    host, _, port = text.rpartition(":")
    try:
        return parse_address(host.strip("[]")), int(port)
    except (AddressError, ValueError):
        return None
