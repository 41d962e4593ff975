"""Trust anchors: the roots by which every node of a mesh verifies peers of the mesh's own trust domain. One kind of
objects of the mesh model.

Here a certificate is text that has the form of one. What is in it, whoever verifies by it has to look at.
"""

import hashlib
import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from dataclasses import dataclass
from textwrap import wrap
from typing import Self

from nodeseal.mesh.kinds import Kind, MeshError

MOST_BYTES = 16 * 1024
"""Of a certificate (DER): as much as a peer may show in all."""

MOST_ANCHORS = 32
"""Of a mesh: a rotation needs two, and each node tells all others which it has."""

_BLOCK = re.compile(r"\s*-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]*?)\s*-----END CERTIFICATE-----\s*")
_KEY = re.compile(r"[0-9a-f]{64}")


class PemError(ValueError):
    """A text is no certificate in PEM form."""


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """One root. Made by `read`, so that two of one certificate are equal."""

    key: str
    """SHA-256 over the whole certificate, in hexadecimal."""
    pem: str

    @classmethod
    def read(cls, text: str) -> Self:
        """Of one certificate in PEM form (RFC 7468). Raises PemError, whose text stands after "found"."""
        match = _BLOCK.fullmatch(text)
        if match is None:
            raise PemError("something else")
        try:
            der = b64decode("".join(match[1].split()), validate=True)
        except (NotBase64, ValueError):
            raise PemError("one whose Base64 is broken") from None
        if len(der) > MOST_BYTES:
            raise PemError(f"one of more than {MOST_BYTES >> 10} KiB")
        if not _is_one_sequence(der):
            raise PemError("one that is cut off, or is none inside")
        lines = wrap(b64encode(der).decode("ascii"), 64)
        pem = "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))
        return cls(hashlib.sha256(der).hexdigest(), pem)


def _is_one_sequence(der: bytes) -> bool:
    """Whether it is a DER SEQUENCE (X.690, 8.1) to its last byte, as a certificate is."""
    if len(der) < 2 or der[0] != 0x30:
        return False
    length, begin = der[1], 2
    if length & 0x80:
        more = length & 0x7F
        if not 1 <= more <= 3 or len(der) < 2 + more:
            return False
        length, begin = int.from_bytes(der[2 : 2 + more], "big"), 2 + more
    return begin + length == len(der)


def read_anchor_key(text: str) -> str:
    """The fingerprint that a text is. Raises MeshError."""
    if _KEY.fullmatch(text) is None:
        raise MeshError(f"{text[:80]!a} is no SHA-256 fingerprint of 64 hexadecimal digits")
    return text


TRUST_ANCHORS: Kind[str, TrustAnchor] = Kind("trust_anchors", "trust anchor", read_anchor_key)
