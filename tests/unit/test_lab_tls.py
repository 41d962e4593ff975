"""Reading hello messages: real ones, made by Python's ssl module, and broken ones."""

from __future__ import annotations

import ssl
import struct

import pytest

from nodeseal_lab.demo.tls import TlsError, parse_client_hello, parse_server_hello


def client_hello(version: ssl.TLSVersion) -> bytes:
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="peer.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def server_hello(extensions: bytes, *, version: int = 0x0303, suite: int = 0x1302) -> bytes:
    body = struct.pack("!H", version) + bytes(32) + b"\0" + struct.pack("!H", suite) + b"\0"
    body += struct.pack("!H", len(extensions)) + extensions
    message = b"\x02" + len(body).to_bytes(3) + body
    return b"\x16\x03\x03" + struct.pack("!H", len(message)) + message


TLS13_CHOSEN = struct.pack("!HHH", 43, 2, 0x0304)


def test_client_offering_tls13_only() -> None:
    assert parse_client_hello(client_hello(ssl.TLSVersion.TLSv1_3)).versions == ("TLS 1.3",)


def test_client_offering_tls12_only() -> None:
    assert parse_client_hello(client_hello(ssl.TLSVersion.TLSv1_2)).versions == ("TLS 1.2",)


def test_server_choosing_tls13() -> None:
    hello = parse_server_hello(server_hello(TLS13_CHOSEN))
    assert (hello.version, hello.cipher_suite) == ("TLS 1.3", "TLS_AES_256_GCM_SHA384")


def test_server_choosing_tls12() -> None:
    hello = parse_server_hello(server_hello(b"", suite=0xC02F))
    assert (hello.version, hello.cipher_suite) == ("TLS 1.2", "0xc02f")


def test_hello_may_lie_across_records() -> None:
    message = server_hello(TLS13_CHOSEN)[5:]
    halves = message[:10], message[10:]
    stream = b"".join(b"\x16\x03\x03" + struct.pack("!H", len(half)) + half for half in halves)
    assert parse_server_hello(stream).version == "TLS 1.3"


def test_what_follows_the_hello_is_left_alone() -> None:
    assert parse_server_hello(server_hello(TLS13_CHOSEN) + b"\x17\x03\x03\xff").version == "TLS 1.3"


def test_plaintext_is_no_hello() -> None:
    with pytest.raises(TlsError, match="first record is of type 71"):
        parse_client_hello(b"GET / HTTP/1.1\r\n")


def test_alert_is_no_hello() -> None:
    with pytest.raises(TlsError, match="first record is of type 21"):
        parse_server_hello(b"\x15\x03\x03\x00\x02\x02\x28")


def test_server_hello_is_no_client_hello() -> None:
    with pytest.raises(TlsError, match="message is of type 2: expected 1"):
        parse_client_hello(server_hello(TLS13_CHOSEN))


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_hello_that_ends_too_early(length: int) -> None:
    with pytest.raises(TlsError, match="too early"):
        parse_client_hello(client_hello(ssl.TLSVersion.TLSv1_3)[:length])
