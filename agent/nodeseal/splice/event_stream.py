"""Events on their way from the C core to those who have subscribed on the control socket.

How it works: the workers put events into rings (cext/src/loop/events.h). While anybody listens, the main thread takes
some out every PERIOD_S, makes messages of them and sends each listener a copy. Nothing waits for a listener: its socket
does not block, and what finds no room in it is lost to that listener alone, and counted. At most ROWS are taken at
once, because making messages keeps the interpreter's lock from the decisions; what a ring cannot hold until the next
time is lost to all.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

from nodeseal.contracts.events import Event, Told, encode
from nodeseal.linux import control_socket
from nodeseal.splice import native

PERIOD_S = 0.025
ROWS = 128
"""Taken at once: some 5,000 a second."""
MESSAGE_ROWS = 32
_SEND_BUFFER = 1 << 20
"""Of a listener's socket, in bytes: what is on its way to one that is slow."""


class EventStream:
    """Not thread-safe: the main thread owns it."""

    def __init__(self, core: native.Core, name_of: native.NameOf) -> None:
        self._core = core
        self._name_of = name_of
        self._lost: dict[socket.socket, int] = {}
        """How many events each listener missed and was not told of yet."""

    def __contains__(self, listener: object) -> bool:
        return listener in self._lost

    def period(self) -> float | None:
        """Seconds after which `tell` is due; None while nobody listens."""
        return PERIOD_S if self._lost else None

    def add(self, listener: socket.socket) -> None:
        """Events go there from now on, until `remove`."""
        listener.setblocking(False)
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if not self._lost:
            self._core.events_listen(wanted=True)
        self._lost[listener] = 0

    def remove(self, listener: socket.socket) -> None:
        """No more events go there; harmless if none did."""
        if self._lost.pop(listener, None) is not None and not self._lost:
            self._core.events_listen(wanted=False)

    def tell(self) -> list[socket.socket]:
        """Sends what has happened. Returns the listeners that have gone, which are removed."""
        if not self._lost:
            return []
        events, lost = self._core.next_events(ROWS, self._name_of)
        for listener in self._lost:
            self._lost[listener] += lost
        gone: dict[socket.socket, None] = {}
        for rows in _pieces(events):
            for listener in self._lost:
                if listener not in gone and not self._send(listener, rows):
                    gone[listener] = None
        for listener in gone:
            self.remove(listener)
        return list(gone)

    def _send(self, listener: socket.socket, rows: tuple[Event, ...]) -> bool:
        """False when it has gone."""
        try:
            with control_socket.packed(encode(Told(events=rows, lost=self._lost[listener]))) as message:
                control_socket.send(listener, message)
        except BlockingIOError:
            self._lost[listener] += len(rows)
            return True
        except control_socket.ControlError:
            return False
        self._lost[listener] = 0
        return True


def _pieces(events: tuple[Event, ...]) -> Iterable[tuple[Event, ...]]:
    return (events[first : first + MESSAGE_ROWS] for first in range(0, len(events), MESSAGE_ROWS))
