"""One connection of the traffic program, either side: it sends messages at its pace, checks those that come, and ends
once both sides have sent their last. What becomes of it is counted, and noted if it is not as it should be.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from support.connection import endpoint
from support.messages import LAST, BrokenStreamError, Message, Receiver, Sender

_FLOOD_SIZE = 4096
_FLOOD_STEP = 0.02  # seconds
_FLOOD_MESSAGES = 32
"""Of a flood some messages at a time: the others wait for their turn, and so does what comes the other way."""
_READ_STEP = 0.05  # seconds between two reads of a slow reader
_received = memoryview(bytearray(1 << 16))
"""What arrives, of all connections: each takes it out at once."""


@dataclass(slots=True)
class Group:
    """What the connections of a group do.

    `interval_ms`, `reply_ms`: how often this and the other side send, about; 0: as much as the connection takes.
    `messages`: it finishes by itself after so many of its own; 0: when told. `read_rate`: bytes a second that it
    reads; 0: all there is. `redial`: one that is cut or fails is dialled again. `over_ms`: the dialling is spread over
    this."""

    name: str
    address: tuple[str, int]
    marker: bytes
    interval_ms: int = 1000
    reply_ms: int = 1000
    size: int = 200
    messages: int = 0
    read_rate: int = 0
    redial: bool = False
    over_ms: int = 0
    finishing: bool = False


@dataclass(slots=True)
class Counts:
    """Of a group, or of all that was served: opened = answered + failed + those that wait, and
    answered = closed + cut + wrong + open.

    `sent` and `received` are messages, `slowest_ms` the longest time from connect() to the first message."""

    opened: int = 0
    answered: int = 0
    closed: int = 0
    failed: int = 0
    cut: int = 0
    wrong: int = 0
    open: int = 0
    sent: int = 0
    received: int = 0
    bytes: int = 0
    slowest_ms: int = 0
    quietest_ms: int = 0
    """For how long the connection that heard nothing for the longest has heard nothing."""


class Connection(asyncio.BufferedProtocol):
    """`group` and `sender` are None for one that was accepted: its first message says what it is to send.

    `ended` is called once, with what happened: None if all was as it should be, otherwise ("failed" | "cut" | "wrong",
    the details)."""

    def __init__(
        self,
        counts: Counts,
        ended: Callable[[Connection, tuple[str, str] | None], object],
        group: Group | None = None,
        sender: Sender | None = None,
    ) -> None:
        self.counts, self.group = counts, group
        self.began = time.monotonic()
        self.heard = self.began
        """When the last message came."""
        self.local = self.remote = ""
        self._ended = ended
        self._sender = sender
        self._receiver = Receiver()
        self._transport: asyncio.Transport | None = None
        self._interval = group.interval_ms / 1000 if group else 1.0
        self._size = group.size if group else 0
        self._read_size = max(int(group.read_rate * _READ_STEP), 1) if group and group.read_rate else 0
        """What a slow reader reads at a time, in bytes; 0: it is not slow."""
        self._blocked = False  # some of what was sent is still in this process
        self._finished = False  # the last message was sent, and the end after it
        self._heard_the_end = False
        self._over = False
        counts.opened += 1

    @property
    def number(self) -> int | None:
        """Of the connection, the same on both sides; None before the first message."""
        return self._sender.connection if self._sender else self._receiver.connection

    def finish(self) -> None:
        """Sends the last message, and reads what is still to come as fast as it comes."""
        self._read_size = 0
        if self._transport is None or self._sender is None or self._finished or self._over:
            return
        self._transport.resume_reading()
        self._finished = True
        self._write(0, LAST)
        try:
            self._transport.write_eof()
        except OSError as error:
            self._end(str(error.strerror))
        self._end_if_whole()

    def fail(self, why: str) -> None:
        """It could not be dialled."""
        self._end(why)

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        self.local = self.local or endpoint(transport.get_extra_info("sockname"))
        self.remote = self.remote or endpoint(transport.get_extra_info("peername"))
        if self._sender is not None:
            self._send_next()
        if self._read_size:
            self._pause()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return _received[: self._read_size or None]

    def buffer_updated(self, size: int) -> None:
        receiver, counts = self._receiver, self.counts
        before, messages, broken = receiver.received, [], None
        try:
            messages = receiver.feed(bytes(_received[:size]))
        except BrokenStreamError as error:
            broken = error
        counts.bytes += size
        counts.received += receiver.received - before
        if receiver.received > before:
            self.heard = time.monotonic()
            if before == 0:
                counts.answered += 1
                counts.open += 1
                counts.slowest_ms = max(counts.slowest_ms, int((self.heard - self.began) * 1000))
        if broken is not None:
            counts.wrong += 1
            counts.open -= receiver.received > 0
            self._over_with(("wrong", str(broken)))
            return
        if messages and self._sender is None:
            self._answer(messages[0])
        if receiver.ended and self.group is None:
            self.finish()
        if self._read_size:
            self._pause()

    def eof_received(self) -> bool:
        self._heard_the_end = True
        if not self._receiver.end():
            self._end("the other side ended it")
        else:
            # What is still to be sent goes first.
            self.finish()
            self._end_if_whole()
        return True

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._end_if_whole()
        if not self._interval and self._sender is not None and not self._finished and not self._over:
            self._flood()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(getattr(error, "strerror", error)))

    # ---- how it goes on

    def _answer(self, first: Message) -> None:
        self._sender = Sender(first.marker, first.connection, 0)
        self._interval = first.reply_ms / 1000
        self._size = first.size if first.reply_ms else _FLOOD_SIZE
        self._send_next()

    def _send_next(self) -> None:
        """Sends a message if the one before has gone, and comes again when the next is due."""
        if self._over or self._finished or self._sender is None:
            return
        group = self.group
        if group is not None and group.finishing:
            self.finish()
            return
        if not self._blocked:
            self._write(self._size)
            if not self._interval:
                self._flood()
            if group is not None and group.messages and self._sender.sent >= group.messages:
                self.finish()
                return
        # Not all at the same moment, however they began.
        pause = self._interval * random.uniform(0.75, 1.25) or _FLOOD_STEP  # noqa: S311
        asyncio.get_running_loop().call_later(pause, self._send_next)

    def _flood(self) -> None:
        for _ in range(_FLOOD_MESSAGES):
            if self._blocked or self._over:
                return
            self._write(self._size)

    def _write(self, size: int, *kind: int) -> None:
        assert self._transport is not None
        assert self._sender is not None
        self._transport.write(self._sender.message(size, *kind))
        self.counts.sent += 1

    def _pause(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()
        asyncio.get_running_loop().call_later(_READ_STEP, self._transport.resume_reading)

    def _end_if_whole(self) -> None:
        """Everything was there both ways: how the very end looks is the kernels' affair."""
        if self._finished and not self._blocked and self._heard_the_end and self._receiver.end():
            self._end("")

    def _end(self, why: str) -> None:
        if self._over:
            return
        counts, answered = self.counts, self._receiver.received > 0
        whole = self._receiver.ended and self._finished and not self._blocked
        counts.open -= answered
        if whole:
            counts.closed += 1
            self._over_with(None)
        elif answered:
            counts.cut += 1
            self._over_with(("cut", why))
        elif self.group is not None:
            counts.failed += 1
            self._over_with(("failed", why))
        else:
            self._over_with(None)

    def _over_with(self, what: tuple[str, str] | None) -> None:
        self._over = True
        if self._transport is not None:
            self._transport.abort()
        self._ended(self, what)
