"""A small HBONE client over Python's ssl: one TLS connection, one CONNECT stream, HTTP/2 frames by hand.

It shows exactly what a server answers, where Envoy shows only that a request failed, and it can be given every fault
that a server must refuse.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from interop.frames import END_HEADERS, END_STREAM, PREFACE, SETTINGS, Frame, Frames, Kind, data, literal
from support.lab import HBONE_PORT, RunningLab
from support.patience import PATIENCE

NO_ERROR = 0
_STREAM = 1

# RFC 7541: the static table's entries that a :status can be (appendix A), and the Huffman codes of digits (appendix B).
_STATUS_INDEX = {0x88: "200", 0x89: "204", 0x8A: "206", 0x8B: "304", 0x8C: "400", 0x8D: "404", 0x8E: "500"}
_STATUS_NAMES = range(8, 15)
_DIGITS = {"00000": "0", "00001": "1", "00010": "2"} | {format(22 + n, "06b"): str(n) for n in range(3, 10)}


@dataclass(frozen=True)
class Answer:
    """What came back for a request: the status, None when there was none; the code of a reset, None when there was
    none; what the stream carried until its end."""

    status: str | None
    reset: int | None
    body: bytes


class Hbone:
    """A connection to port 15008 of a pod, from another pod. Raises OSError (ssl.SSLError is one) when it fails."""

    def __init__(self, lab: RunningLab, source: str, destination: str, context: ssl.SSLContext) -> None:
        def connect() -> socket.socket:
            return socket.create_connection((lab.address(destination), HBONE_PORT), timeout=PATIENCE)

        plain = lab.run(source, connect)
        try:
            self.socket = context.wrap_socket(plain, suppress_ragged_eofs=False)
        except BaseException:
            plain.close()
            raise
        self.address: tuple[str, int] = self.socket.getsockname()

    def request(self, authority: str, body: bytes = b"", *, method: str = "CONNECT") -> Answer:
        """One request on stream 1; the body and its end follow a 200 only. Raises OSError, EOFError."""
        headers = literal(2, method) + literal(1, authority)
        if method != "CONNECT":
            headers += literal(4, "/") + literal(6, "http")  # :path, :scheme
        frames = self.begin(Frame(Kind.HEADERS, END_HEADERS, _STREAM, headers))
        status = None
        received = b""
        while True:
            frame = frames.receive()
            if frame.kind == Kind.GOAWAY:
                raise EOFError(f"the server says goodbye, with error {frame.code}")
            if frame.stream != _STREAM:
                continue
            if frame.kind == Kind.HEADERS:
                status = _status(frame.payload)
                if status == "200":
                    frames.send(data(_STREAM, body, end=True))
            elif frame.kind == Kind.DATA:
                received += frame.payload
            elif frame.kind == Kind.RST_STREAM:
                return Answer(status, frame.code, received)
            if frame.kind in (Kind.HEADERS, Kind.DATA) and frame.flags & END_STREAM:
                return Answer(status, None, received)

    def begin(self, *first: Frame) -> Frames:
        """Sends the preface, SETTINGS and the first frames, at once: a server that refuses us may have closed before
        anything else is sent, and its alert could not be read any more. The rest is the caller's. Raises OSError."""
        self.socket.sendall(PREFACE + b"".join(frame.encoded for frame in (SETTINGS, *first)))
        return Frames(self.socket)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def client_context(
    directory: Path | None,
    bundle: Path,
    *,
    alpn: tuple[str, ...] = ("h2",),
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A TLS client that checks the server's chain against `bundle`, with the certificate in `directory`
    (Credential.write) or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # identities are URIs, which Python's ssl does not compare
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(bundle)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if directory is not None:
        context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
    return context


def _status(block: bytes) -> str:
    """The :status that a header block begins with."""
    if block[0] in _STATUS_INDEX:
        return _STATUS_INDEX[block[0]]
    # A literal of any kind: the name's index is in the lower 6 (with indexing) or 4 bits.
    name = block[0] & (0x3F if block[0] & 0x40 else 0x0F)
    assert name in _STATUS_NAMES, f"the answer does not begin with its status: {block.hex()}"
    length = block[1] & 0x7F
    value = block[2 : 2 + length]
    return _digits(value) if block[1] & 0x80 else value.decode()


def _digits(coded: bytes) -> str:
    bits = "".join(format(byte, "08b") for byte in coded)
    text = ""
    while len(text) < 3:
        width = 5 if bits[:5] in _DIGITS else 6
        text += _DIGITS[bits[:width]]
        bits = bits[width:]
    return text
