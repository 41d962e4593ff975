"""HTTP/2 frames by hand over TLS (RFC 9113): a peer, in either role, that does what a test says, right or wrong."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from support.connection import receive_exactly
from support.lab import HBONE_PORT, RunningLab
from support.patience import PATIENCE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


class Kind(IntEnum):
    """Types of RFC 9113 section 6."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(IntEnum):
    """Errors of RFC 9113 section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    STREAM_CLOSED = 5
    CANCEL = 8
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes = b""

    @property
    def code(self) -> int:
        """Of RST_STREAM and GOAWAY."""
        return int(struct.unpack_from("!I", self.payload, 4 if self.kind == Kind.GOAWAY else 0)[0])

    @property
    def encoded(self) -> bytes:
        return len(self.payload).to_bytes(3) + bytes((self.kind, self.flags)) + self.stream.to_bytes(4) + self.payload


SETTINGS = Frame(Kind.SETTINGS, 0, 0)


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> Frame:
    return Frame(Kind.DATA, END_STREAM if end else 0, stream, payload)


def reset(stream: int, code: int) -> Frame:
    return Frame(Kind.RST_STREAM, 0, stream, struct.pack("!I", code))


def goaway(last: int, code: int) -> Frame:
    return Frame(Kind.GOAWAY, 0, 0, struct.pack("!II", last, code))


def literal(name: int, value: str) -> bytes:
    """A header field without indexing, its name from the static table, its value not Huffman coded (RFC 7541 6.2.2)."""
    assert len(value) < 127
    first = bytes((name,)) if name < 15 else bytes((0x0F, name - 15))
    return first + bytes((len(value),)) + value.encode()


def connect(stream: int, authority: str) -> Frame:
    """A request for a tunnel."""
    return Frame(Kind.HEADERS, END_HEADERS, stream, literal(2, "CONNECT") + literal(1, authority))


def answer(stream: int, status: str, *, why: str = "", end: bool = False) -> Frame:
    """`why`: the value of its Proxy-Status, if it has one."""
    fields = literal(8, status)
    if why:
        name = b"proxy-status"
        fields += bytes([0, len(name)]) + name + bytes([len(why)]) + why.encode()
    return Frame(Kind.HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, fields)


def trailers(stream: int) -> Frame:
    """What ends a message elsewhere, a header field (age) behind its content."""
    return Frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, literal(21, "1"))


class Frames:
    """One connection, after its TLS handshake."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self.socket = connection

    def send(self, *frames: Frame) -> None:
        """In one TLS record, as far as they fit. Raises OSError."""
        self.socket.sendall(b"".join(frame.encoded for frame in frames))

    def receive(self) -> Frame:
        """The next frame; SETTINGS and PING are answered. Raises EOFError behind the last, and OSError (ssl.SSLEOFError
        is one) when the end is not a close_notify."""
        header = receive_exactly(self.socket, 9)
        payload = receive_exactly(self.socket, int.from_bytes(header[:3]))
        frame = Frame(header[3], header[4], int.from_bytes(header[5:]) & 0x7FFFFFFF, payload)
        if frame.kind in (Kind.SETTINGS, Kind.PING) and not frame.flags & ACK:
            # The other side may be through with us.
            with contextlib.suppress(OSError):
                self.send(Frame(frame.kind, ACK, 0, b"" if frame.kind == Kind.SETTINGS else payload))
        return frame

    def until(self, kind: Kind, stream: int = 0) -> Frame:
        """The next frame of this kind on the stream. Raises EOFError, OSError as receive()."""
        while True:
            frame = self.receive()
            if (frame.kind, frame.stream) == (kind, stream):
                return frame

    def rest(self) -> Iterator[Frame]:
        """All frames up to an orderly end. Raises OSError for any other."""
        with contextlib.suppress(EOFError):
            while True:
                yield self.receive()

    def close_notify(self) -> None:
        """Ends TLS in order, and then TCP."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(0.1)  # for the other side's close_notify, which may not come
            self.socket.unwrap()
        self.close()

    def close(self) -> None:
        """Ends TCP only."""
        with contextlib.suppress(OSError):
            self.socket.close()


class Listener:
    """Port 15008 of a pod. Raises OSError when it is taken."""

    def __init__(self, lab: RunningLab, pod: str, directory: Path) -> None:
        """`directory`: as Credential.write has it."""

        def listen() -> socket.socket:
            return socket.create_server((lab.address(pod), HBONE_PORT))

        self._socket = lab.run(pod, listen)
        self._socket.settimeout(PATIENCE)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.num_tickets = 0  # a client that closes early would reset over them
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(directory / "bundle.pem")
        self._context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
        self._context.set_alpn_protocols(["h2"])

    def accept(self) -> Frames:
        """The next connection: its preface is read, and answered with SETTINGS."""
        plain, _ = self._socket.accept()
        plain.settimeout(PATIENCE)
        frames = Frames(self._context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False))
        assert receive_exactly(frames.socket, len(PREFACE)) == PREFACE
        frames.send(SETTINGS)
        return frames

    def close(self) -> None:
        self._socket.close()
