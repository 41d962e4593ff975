"""By what a core knows who is revoked: digests of identities and of certificates. Pure.

A core keeps 16 bytes for each, whatever it stands for: the first half of the SHA-256 of a text that says what it is.
The core makes the same texts of the certificates of a handshake (cext/src/wire/revoked.c), and tests compare the two. A
certificate is revoked by any of its three digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from nodeseal.mesh.revocation import Revocation
from nodeseal.mesh.spiffe import SpiffeId

_LENGTH = 32


def of_identity(identity: SpiffeId) -> str:
    """Every certificate with this SPIFFE id, in 32 hexadecimal digits, as all of these."""
    return _digest("identity", str(identity))


def of_serial(trust_domain: str, serial: int) -> str:
    """The certificates with this serial number whose SPIFFE id is of the trust domain, whoever issued them."""
    return _digest("serial", trust_domain, f"{serial:x}")


def of_issued(issuer_name: bytes, serial: int) -> str:
    """The certificate with this serial number by the issuer with this name: as a CRL names it (RFC 5280, 5).

    `issuer_name` is the DER of the distinguished name, byte for byte as in the certificate."""
    return _digest("issued", hashlib.sha256(issuer_name).hexdigest(), f"{serial:x}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_LENGTH]


def of_revocations(revocations: Iterable[Revocation], trust_domain: str) -> list[str]:
    """All that these revoke. `trust_domain`: the mesh's own."""
    found: list[str] = []
    for one in revocations:
        found += map(of_identity, one.identities)
        domain = one.trust_domain or trust_domain
        found += [of_serial(domain, serial) for serial in one.serials]
    return found


def packed(digests: Iterable[str]) -> bytes:
    """In ascending order, each once, 16 bytes each: what is kept of a large set."""
    return bytes.fromhex("".join(sorted(set(digests))))


def unpacked(digests: bytes) -> set[str]:
    """The reverse."""
    text = digests.hex()
    return {text[at : at + _LENGTH] for at in range(0, len(text), _LENGTH)}
