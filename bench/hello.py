"""A recorded ClientHello, as somebody sends it who has no certificate and computes nothing (RFC 8446, 4.1.2)."""

from __future__ import annotations

import os
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Group(NamedTuple):
    """A key-exchange group by its number (RFC 8446, 4.2.7), and a public key in it that its server takes."""

    number: int
    share: bytes


def _point(curve: ec.EllipticCurve) -> bytes:
    key = ec.generate_private_key(curve).public_key()
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def group(name: str) -> Group:
    """One of "X25519", "P-256", "P-384" and "ffdhe8192". Raises KeyError."""
    if name == "X25519":
        return Group(0x001D, x25519.X25519PrivateKey.generate().public_key().public_bytes_raw())
    if name == "ffdhe8192":
        return Group(0x0104, (4).to_bytes(1024, "big"))  # 2 * 2: in the right subgroup, which is checked
    number, curve = {"P-256": (0x0017, ec.SECP256R1), "P-384": (0x0018, ec.SECP384R1)}[name]
    return Group(number, _point(curve()))


def client_hello(of: Group) -> bytes:
    """The record of a hello that offers this group alone, with a share of it: TLS 1.3, AES-GCM, ALPN h2."""
    share = _vector(2, _number(2, of.number) + _vector(2, of.share))
    extensions = b"".join(
        [
            _extension(43, _vector(1, b"\x03\x04")),
            _extension(10, _vector(2, _number(2, of.number))),
            _extension(51, share),
            _extension(13, _vector(2, b"\x04\x03\x05\x03\x08\x04")),
            _extension(16, _vector(2, _vector(1, b"h2"))),
        ]
    )
    body = b"\x03\x03" + os.urandom(32) + _vector(1, os.urandom(32)) + _vector(2, b"\x13\x01\x13\x02") + b"\x01\x00"
    message = b"\x01" + _vector(3, body + _vector(2, extensions))
    return b"\x16\x03\x01" + _vector(2, message)


def _number(size: int, value: int) -> bytes:
    return value.to_bytes(size, "big")


def _vector(size: int, content: bytes) -> bytes:
    return _number(size, len(content)) + content


def _extension(kind: int, content: bytes) -> bytes:
    return _number(2, kind) + _vector(2, content)
