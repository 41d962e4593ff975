"""Revocations: identities, certificates, nodes and trust anchors that a mesh does not talk with any more. One kind of
objects of the mesh model, with the list of serial numbers of one entry packed: 100,000 take 2 MB.

What cores know a revocation by is nodeseal.mesh.revoked. They are told of it apart from the mesh state.
"""

import bisect
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nodeseal.mesh.kinds import Kind, MeshError
from nodeseal.mesh.spiffe import Identity

SERIAL_BYTES = 20
"""Longest serial number (RFC 5280, 4.1.2.2)."""

REASON_MAX = 200
"""Longest reason, in characters."""


class Revoked(StrEnum):
    """What is revoked."""

    IDENTITY = "identity"
    SERIAL = "serial"
    NODE = "node"
    ANCHOR = "anchor"


@dataclass(frozen=True, slots=True, order=True)
class RevocationKey:
    """By which one is known. As text: "identity spiffe://...", "node node3", "serial 3fa9", "serials 9c05...", and
    "anchor 51e7..." with the whole fingerprint.

    Of a list of serial numbers it is the digest of all of them: another list is another revocation."""

    what: str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name}"

    @classmethod
    def parse(cls, text: str) -> "RevocationKey":
        """The reverse of str(). Raises MeshError."""
        what, _, name = text.partition(" ")
        if not what or not name:
            raise MeshError(f"{text[:80]!a} is no revocation")
        return cls(what, name)


@dataclass(frozen=True, slots=True)
class Serials:
    """Serial numbers of certificates, in ascending order, each once."""

    packed: bytes = b""

    @classmethod
    def of(cls, numbers: Iterable[int]) -> "Serials":
        """Each from 1 to 20 bytes long. Raises OverflowError for a longer or negative one."""
        return cls(b"".join(number.to_bytes(SERIAL_BYTES, "big") for number in sorted(set(numbers))))

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int) or not 0 <= number < 1 << 8 * SERIAL_BYTES:
            return False
        wanted, packed = number.to_bytes(SERIAL_BYTES, "big"), self.packed
        found = bisect.bisect_left(
            range(len(self)), wanted, key=lambda at: packed[at * SERIAL_BYTES : (at + 1) * SERIAL_BYTES]
        )
        return packed.startswith(wanted, found * SERIAL_BYTES)

    def __iter__(self) -> Iterator[int]:
        packed = self.packed
        return (int.from_bytes(packed[at : at + SERIAL_BYTES], "big") for at in range(0, len(packed), SERIAL_BYTES))

    def __len__(self) -> int:
        return len(self.packed) // SERIAL_BYTES


@dataclass(frozen=True, slots=True)
class Revocation:
    """One entry: an identity, a node with the identities that were its alone and the serial numbers of what was issued
    to it, serial numbers of one trust domain, or whoever was verified by a trust anchor that was removed."""

    key: RevocationKey
    reason: str = ""
    """For people; may be empty."""
    since: str = ""
    """When it was revoked: ISO 8601, UTC; may be empty."""
    identities: tuple[Identity, ...] = ()
    serials: Serials = Serials()
    trust_domain: str | None = None
    """Of the certificates with these serial numbers; None: the mesh's own."""

    @property
    def node(self) -> str | None:
        """The node that is revoked."""
        return self.key.name if self.key.what == Revoked.NODE else None

    @property
    def anchor(self) -> str | None:
        """The fingerprint of the trust anchor that was removed."""
        return self.key.name if self.key.what == Revoked.ANCHOR else None

    @property
    def because(self) -> str:
        """The reason, to stand after "revoked": " (key leaked)"; "" if there is none."""
        return f" ({self.reason})" if self.reason else ""


def revoked_identity(identity: Identity, reason: str = "", since: str = "") -> Revocation:
    """Revokes every certificate with this identity."""
    return Revocation(RevocationKey(Revoked.IDENTITY, str(identity)), reason, since, (identity,))


def revoked_node(
    node: str, identities: Iterable[Identity], reason: str = "", since: str = "", serials: Iterable[int] = ()
) -> Revocation:
    """Revokes a node: nothing is issued to it any more, and these identities are revoked, and the certificates of the
    mesh's own trust domain with these serial numbers, which were issued to it. Raises OverflowError, see Serials.of."""
    key = RevocationKey(Revoked.NODE, node)
    return Revocation(key, reason, since, tuple(sorted(set(identities), key=str)), Serials.of(serials))


def revoked_anchor(fingerprint: str, reason: str = "", since: str = "") -> Revocation:
    """Revokes every certificate that is verified by the trust anchor with this fingerprint (all 64 digits)."""
    return Revocation(RevocationKey(Revoked.ANCHOR, fingerprint), reason, since)


def revoked_serials(
    numbers: Iterable[int], trust_domain: str | None = None, reason: str = "", since: str = ""
) -> Revocation:
    """Revokes certificates by their serial numbers, at least one. Raises OverflowError, see Serials.of."""
    serials = Serials.of(numbers)
    domain = f"@{trust_domain}" if trust_domain is not None else ""
    if len(serials) == 1:
        key = RevocationKey("serial", f"{next(iter(serials)):x}{domain}")
    else:
        key = RevocationKey("serials", hashlib.sha256(serials.packed).hexdigest()[:32] + domain)
    return Revocation(key, reason, since, (), serials, trust_domain)


REVOCATIONS: Kind[RevocationKey, Revocation] = Kind("revocations", "revocation", RevocationKey.parse, for_cores=False)


def identities_of(revocations: Iterable[Revocation]) -> Mapping[Identity, Revocation]:
    """The identities that are revoked, each with what revokes it: nothing is issued for them."""
    return {identity: one for one in revocations for identity in one.identities}


def certificates_of(revocations: Iterable[Revocation], trust_domain: str) -> Serials:
    """The serial numbers that are revoked of certificates of this trust domain, which is the mesh's own."""
    own = (one.serials for one in revocations if one.trust_domain in (None, trust_domain))
    return Serials.of(itertools.chain.from_iterable(own))


def nodes_of(revocations: Iterable[Revocation]) -> Mapping[str, Revocation]:
    """The nodes that are revoked: nothing is issued to them."""
    return {one.node: one for one in revocations if one.node is not None}
