"""Numbered, checksummed messages on a byte stream: what is lost, repeated, reordered or changed is found and named.

No input or output here: bytes in, bytes out. A message is

    marker 16 | connection 8 | number 8 | reply 4 | length 2 | kind 1 | 0 1 | CRC-32 4 | payload

in network byte order. The numbers of one direction go 1, 2, 3 ...; the CRC is of all the rest. The payload is the
marker, over and over, so that any 31 bytes of it hold the marker: a segment of a connection that crosses a wire in
plaintext shows it, wherever the segment begins. `reply` is how often the other side is asked to send, in milliseconds;
0 asks for as much as the connection takes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MARKER_SIZE = 16
DATA, LAST = 0, 1
"""The kinds; nothing follows the LAST message of a direction but its end."""

_HEADER = struct.Struct("!16sQQIHBxI")
HEADER_SIZE = _HEADER.size
PAYLOAD_MAX = 0xFFFF


class BrokenStreamError(Exception):
    """What arrived is not what was sent; the text names the difference."""


@dataclass(frozen=True, slots=True)
class Message:
    """What the other side sent."""

    marker: bytes
    connection: int
    number: int
    reply_ms: int
    kind: int
    size: int


class Sender:
    """One direction of a connection, at its beginning."""

    def __init__(self, marker: bytes, connection: int, reply_ms: int) -> None:
        self.sent = 0
        self._marker = marker
        self.connection = connection
        self._reply_ms = reply_ms

    def message(self, size: int, kind: int = DATA) -> bytes:
        """The next message, with `size` bytes of payload."""
        self.sent += 1
        payload = (self._marker * (size // MARKER_SIZE + 1))[:size]
        fields = (self._marker, self.connection, self.sent, self._reply_ms, size, kind)
        check = zlib.crc32(payload, zlib.crc32(_HEADER.pack(*fields, 0)))
        return _HEADER.pack(*fields, check) + payload


class Receiver:
    """The other direction, at its end. The first message says which connection it is."""

    def __init__(self) -> None:
        self.received = 0
        self.bytes = 0
        """Of whole messages."""
        self.marker = b""
        self.connection: int | None = None
        self.ended = False
        """The last message has come."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises BrokenStreamError, after which nothing more can be read."""
        self._buffer += data
        messages = []
        at = 0
        while len(self._buffer) - at >= HEADER_SIZE:
            message, check = self._header(at)
            end = at + HEADER_SIZE + message.size
            if end > len(self._buffer):
                break
            self._check(message, check, at, end)
            messages.append(message)
            at = end
        del self._buffer[:at]
        if self._buffer and self.ended:
            raise BrokenStreamError(f"{len(self._buffer)} bytes follow the last message, number {self.received}")
        return messages

    def end(self) -> bool:
        """The stream has ended: whether all was there. Nobody can tell how much is missing otherwise."""
        return self.ended and not self._buffer

    def _header(self, at: int) -> tuple[Message, int]:
        marker, connection, number, reply_ms, size, kind, check = _HEADER.unpack_from(self._buffer, at)
        if self.connection is None:
            self.marker, self.connection = marker, connection
        elif marker != self.marker:
            raise BrokenStreamError(
                f"bytes are lost or repeated after message {self.received} (byte {self.bytes}): no message begins there"
            )
        return Message(marker, connection, number, reply_ms, kind, size), check

    def _check(self, message: Message, check: int, at: int, end: int) -> None:
        fields = (message.marker, message.connection, message.number, message.reply_ms, message.size, message.kind)
        payload = memoryview(self._buffer)[at + HEADER_SIZE : end]
        try:
            found = zlib.crc32(payload, zlib.crc32(_HEADER.pack(*fields, 0)))
        finally:
            payload.release()
        expected = self.received + 1
        if found != check:
            raise BrokenStreamError(f"message {expected} (byte {self.bytes}) was changed, or bytes of it are lost")
        if message.connection != self.connection:
            raise BrokenStreamError(
                f"message {message.number} of connection {message.connection} arrived in connection {self.connection}"
            )
        if self.ended:
            raise BrokenStreamError(f"message {message.number} follows the last one, number {self.received}")
        if message.number > expected:
            raise BrokenStreamError(f"messages {expected} to {message.number - 1} are lost, or come later")
        if message.number < expected:
            raise BrokenStreamError(f"message {message.number} is repeated: {expected} was expected")
        self.received += 1
        self.bytes += end - at
        self.ended = message.kind == LAST
