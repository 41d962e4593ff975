"""Refused peers as they go from the core to the agent: one typed row, whoever reads it.

A row stands for all refusals of one source that have the same kind and reason; cext/src/limits/refusals.h says how many
are kept, and which give way.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

KINDS = ("handshake", "stream", "plaintext")
"""By enum ns_refusal_kind of nodeseal_core.h: TLS with a peer failed; a request in a tunnel; plaintext."""


class Refusal(msgspec.Struct, frozen=True):
    """Refusals of one source, kind and reason. Times are milliseconds, counted back from when the core was asked."""

    workload: str | None
    """The workload of this node, by its name; None for one that was removed."""
    kind: str
    """One of KINDS; a newer core may have others."""
    direction: str
    """ "inbound": a peer was refused; "outbound": a handshake that the workload began came to nothing."""
    source: str
    """The address that it came from, without a port."""
    destination: str
    """Address and port of the last one."""
    reason: str
    count: int
    first_ms: int
    last_ms: int
    status: int = 0
    """Of a stream: the HTTP status that it was answered with; 0: none."""
    peer: str = ""
    """Of a stream: the peer's verified SPIFFE id."""
    untold: int = 0
    """Of a notice: refusals of others for which there will be none."""


def merged(refusals: Iterable[Refusal]) -> list[Refusal]:
    """Rows of several cores that say the same of the same peer are one; those that were last met lately come first."""
    rows: dict[tuple[object, ...], Refusal] = {}
    for one in refusals:
        dialled = one.destination if one.direction == "outbound" else ""
        key = (one.workload, one.kind, one.direction, one.source, dialled, one.reason, one.status, one.peer)
        before = rows.get(key)
        if before is not None:
            latest = min(before, one, key=lambda row: row.last_ms)
            one = msgspec.structs.replace(
                latest, count=before.count + one.count, first_ms=max(before.first_ms, one.first_ms)
            )
        rows[key] = one
    return sorted(rows.values(), key=lambda row: (row.last_ms, row.source, row.reason))
