"""A small HBONE client over Python's ssl: one TLS connection, one CONNECT stream, HTTP/2 frames by hand (RFC 9113).

It shows exactly what a server answers, where Envoy shows only that a request failed, and it can be given every fault
that a server must refuse.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from support.lab import HBONE_PORT, PATIENCE, RunningLab, receive_exactly

NO_ERROR = 0
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
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
            self.socket = context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        self.address: tuple[str, int] = self.socket.getsockname()

    def request(self, authority: str, body: bytes = b"", *, method: str = "CONNECT") -> Answer:
        """One request on stream 1; the body and its end follow a 200 only. Raises OSError, EOFError."""
        headers = _literal(2, method) + _literal(1, authority)
        if method != "CONNECT":
            headers += _literal(4, "/") + _literal(6, "http")  # :path, :scheme
        self._send(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, _STREAM, headers))
        status = None
        data = b""
        while True:
            kind, flags, stream, payload = self._receive()
            if kind == _SETTINGS and not flags & _ACK:
                self._send(_frame(_SETTINGS, _ACK, 0, b""))
            if kind == _GOAWAY:
                raise EOFError(f"the server says goodbye, with error {struct.unpack_from('!I', payload, 4)[0]}")
            if stream != _STREAM:
                continue
            if kind == _HEADERS:
                status = _status(payload)
                if status == "200":
                    self._send(_frame(_DATA, _END_STREAM, _STREAM, body))
            elif kind == _DATA:
                data += payload
            elif kind == _RST_STREAM:
                return Answer(status, struct.unpack("!I", payload)[0], data)
            if kind in (_HEADERS, _DATA) and flags & _END_STREAM:
                return Answer(status, None, data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _receive(self) -> tuple[int, int, int, bytes]:
        header = receive_exactly(self.socket, 9)
        length = int.from_bytes(header[:3])
        stream = int.from_bytes(header[5:]) & 0x7FFFFFFF
        return header[3], header[4], stream, receive_exactly(self.socket, length)


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


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(name: int, value: str) -> bytes:
    """A header field without indexing, its name from the static table, its value not Huffman coded (RFC 7541 6.2.2)."""
    assert len(value) < 127
    return bytes((name, len(value))) + value.encode()


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
