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
    presented: str = ""
    """Of a handshake: what the certificate that was refused says of whom it is for: the peer's, which nobody has
    verified, or, where the peer refused it, the workload's own. Shortened; "": none was refused, or it does not say.
    This and the next are of the last one."""
    expected: str = ""
    """What the peer's certificate should have said, where it says something else: a SPIFFE id or a trust domain."""

    @property
    def words(self) -> str:
        """The reason, with what was presented and expected."""
        return in_words(self.reason, self.presented, self.expected)


def in_words(reason: str, presented: str | None, expected: str | None) -> str:
    """ "peer is of another trust domain (presented spiffe://other.org/a, expected trust domain example.org)"."""
    if not presented:
        return reason
    what = "" if not expected or "/" in expected else "trust domain "
    behind = f", expected {what}{expected}" if expected and expected != presented else ""
    return f"{reason} (presented {presented}{behind})"


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
