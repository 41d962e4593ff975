"""Reads TLS ClientHello and ServerHello as they stand on the wire (RFC 8446 sections 4.1.2, 4.1.3, 4.2.1 and 5.1)."""

from __future__ import annotations

from dataclasses import dataclass

VERSIONS = {0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
CIPHER_SUITES = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}

_HANDSHAKE_RECORD = 22
_CLIENT_HELLO, _SERVER_HELLO = 1, 2
_SUPPORTED_VERSIONS = 43


class TlsError(Exception):
    """The bytes are not what a TLS peer sends first."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the client offers, best first."""

    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerHello:
    """What the server chose."""

    version: str
    cipher_suite: str


def parse_client_hello(stream: bytes) -> ClientHello:
    """From the first bytes that a client sent. Raises TlsError."""
    hello = _Reader(_first_handshake(stream, _CLIENT_HELLO))
    legacy = hello.number(2)
    hello.take(32)
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    offered = _extensions(hello).get(_SUPPORTED_VERSIONS)
    if offered is None:
        return ClientHello((_name(legacy),))
    versions = _Reader(_Reader(offered).vector(1))
    return ClientHello(tuple(_name(versions.number(2)) for _ in range(versions.left // 2)))


def parse_server_hello(stream: bytes) -> ServerHello:
    """From the first bytes that a server sent. Raises TlsError."""
    hello = _Reader(_first_handshake(stream, _SERVER_HELLO))
    version = hello.number(2)
    hello.take(32)
    hello.vector(1)  # session id
    suite = hello.number(2)
    hello.take(1)  # compression method
    chosen = _extensions(hello).get(_SUPPORTED_VERSIONS)
    if chosen is not None:
        version = _Reader(chosen).number(2)
    return ServerHello(_name(version), CIPHER_SUITES.get(suite, f"0x{suite:04x}"))


class _Reader:
    """Takes bytes from the front; raises TlsError where there are too few."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def take(self, length: int) -> bytes:
        if self.left < length:
            raise TlsError(f"the message ends after {len(self._content)} bytes, {length - self.left} too early")
        self._at += length
        return self._content[self._at - length : self._at]

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length))

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))


def _first_handshake(stream: bytes, expected: int) -> bytes:
    """The body of the first handshake message, which may lie across records."""
    records = _Reader(stream)
    message = b""
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
        kind = records.number(1)
        if kind != _HANDSHAKE_RECORD:
            raise TlsError(f"the first record is of type {kind}: expected {_HANDSHAKE_RECORD} (handshake)")
        records.take(2)  # the record's version says nothing since TLS 1.3
        message += records.vector(2)
    if message[0] != expected:
        raise TlsError(f"the first handshake message is of type {message[0]}: expected {expected}")
    return message[4 : 4 + int.from_bytes(message[1:4])]


def _extensions(hello: _Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    if hello.left:
        extensions = _Reader(hello.vector(2))
        while extensions.left:
            kind = extensions.number(2)
            found[kind] = extensions.vector(2)
    return found


def _name(version: int) -> str:
    return VERSIONS.get(version, f"0x{version:04x}")
