"""By what a core knows who is revoked: digests of identities and of certificates. Pure.

A core keeps 16 bytes for each, whatever it stands for: the first half of the SHA-256 of a text that says what it is.
The core makes the same texts of the certificates of a handshake (cext/src/wire/revoked.c), and tests compare the two. A
workload's certificate is revoked by any of its three digests, and by the numbers of an intermediate above it.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from nodeseal.mesh.revocation import Revocation
from nodeseal.mesh.spiffe import Identity

_LENGTH = 32
_SIZE = 16


def of_identity(identity: Identity) -> str:
    """Every certificate with this SPIFFE id, in 32 hexadecimal digits, as all of these."""
    return _digest("identity", str(identity))


def of_serial(trust_domain: str, serial: int) -> str:
    """The certificates with this serial number whose SPIFFE id is of the trust domain, whoever issued them."""
    return _digest("serial", trust_domain, f"{serial:x}")


def of_issued(issuer_name: bytes, serial: int) -> str:
    """The certificate with this serial number by the issuer with this name: as a CRL names it (RFC 5280, 5).

    `issuer_name` is the DER of the distinguished name, byte for byte as in the certificate."""
    return _digest("issued", hashlib.sha256(issuer_name).hexdigest(), f"{serial:x}")


def of_anchor(fingerprint: str) -> str:
    """Every certificate that is verified by the trust anchor with this fingerprint: the beginning of it."""
    return fingerprint[:_LENGTH]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_LENGTH]


def of_revocations(revocations: Iterable[Revocation], trust_domain: str) -> list[str]:
    """All that these revoke. `trust_domain`: the mesh's own."""
    found: list[str] = []
    for one in revocations:
        found += map(of_identity, one.identities)
        if one.anchor is not None:
            found.append(of_anchor(one.anchor))
        domain = one.trust_domain or trust_domain
        found += [of_serial(domain, serial) for serial in one.serials]
    return found


def packed(digests: Iterable[str]) -> bytes:
    """In ascending order, each once, 16 bytes each: what is kept of a large set."""
    return b"".join(sorted({bytes.fromhex(one) for one in digests}))


def unpacked(digests: bytes) -> set[str]:
    """The reverse."""
    return set(Digests(digests))


def holds(packed: bytes, digest: str) -> bool:
    """Whether a packed set has it."""
    wanted = bytes.fromhex(digest)
    at = bisect.bisect_left(
        range(len(packed) // _SIZE), wanted, key=lambda one: packed[one * _SIZE : (one + 1) * _SIZE]
    )
    return packed[at * _SIZE : (at + 1) * _SIZE] == wanted


def union(sets: Iterable[bytes]) -> bytes:
    """All that is in one of them; all are packed. Takes no more memory than the result."""
    result, last = bytearray(), b""
    for one in heapq.merge(*map(_pieces, sets)):
        if one != last:
            result += one
            last = one
    return bytes(result)


def difference(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """(what `new` has and `old` has not, the reverse); all are packed."""
    added, removed = bytearray(), bytearray()
    coming, going = _pieces(new), _pieces(old)
    one, other = next(coming, None), next(going, None)
    while one is not None or other is not None:
        if one == other:
            one, other = next(coming, None), next(going, None)
        elif other is None or (one is not None and one < other):
            assert one is not None
            added += one
            one = next(coming, None)
        else:
            removed += other
            other = next(going, None)
    return bytes(added), bytes(removed)


class Digests(Sequence[str]):
    """Packed digests as the texts that they are elsewhere, made when they are asked for."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // _SIZE

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self._packed[at * _SIZE : (at + 1) * _SIZE].hex()


def _pieces(packed: bytes) -> Iterator[bytes]:
    return (packed[at : at + _SIZE] for at in range(0, len(packed), _SIZE))
