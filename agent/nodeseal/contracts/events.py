"""What a core tells without being asked, once an agent has subscribed (nodeseal.contracts.core.Subscribe).

Events are bounded in number and bytes on their whole way. A listener that is too slow misses some, and is told how
many; nobody waits for it. Events of one connection come in their order.
"""

from __future__ import annotations

from typing import get_args

import msgspec

from nodeseal.contracts.core import Connection, Count
from nodeseal.contracts.refusal import Refusal


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="opened"):
    """A connection is up: bytes may move."""

    ago_ms: Count = 0
    """How long ago, when the message was made; so in all events."""
    connection: Connection


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="closed"):
    """A connection that was open has ended, and how: `connection.reason`."""

    ago_ms: Count = 0
    connection: Connection


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="failed"):
    """A connection of a workload ended before it was open: refused by a decision, or not to be had."""

    ago_ms: Count = 0
    connection: Connection


class PeerRefused(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="refused"):
    """A peer was refused, or refused this end; `refusal.kind` says whether that was in its handshake."""

    ago_ms: Count = 0
    refusal: Refusal


class LimitReached(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="limit"):
    """Connections of a workload were refused by a limit. At most one event a second for each limit and worker."""

    ago_ms: Count = 0
    workload: str | None = None
    limit: str
    """One of nodeseal.splice.native.LIMITED; a newer core may have others."""
    value: Count = 0
    """Of the limit; 0 where nobody has set it."""
    refused: Count = 0
    """Since the last event of the same limit."""


Event = Opened | Closed | Failed | PeerRefused | LimitReached


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a core to its listener: some events, oldest first, and how many were lost before them."""

    events: tuple[Event, ...] = ()
    lost: Count = 0


class _Known(msgspec.Struct):
    event: str = ""


class _Message(msgspec.Struct):
    events: tuple[msgspec.Raw, ...] = ()
    lost: Count = 0


_messages = msgspec.json.Decoder(_Message)
_events = msgspec.json.Decoder(Event)
_known = msgspec.json.Decoder(_Known)
_NAMES = frozenset(kind.__struct_config__.tag for kind in get_args(Event))
encode = msgspec.json.encode


def read_told(body: bytes) -> Told:
    """What a core has told; events of a kind that only newer cores have are passed over. Raises ValueError (a
    msgspec.MsgspecError, or UnicodeDecodeError) for what is no such message."""
    try:
        message = _messages.decode(body)
        events = tuple(_events.decode(raw) for raw in message.events if _known.decode(raw).event in _NAMES)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    return Told(events=events, lost=message.lost)
