"""What agents and cores know revoked things by."""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import NameOID

from nodeseal.mesh import revoked
from nodeseal.mesh.spiffe import SpiffeId

SHIPPER = SpiffeId("example.org", "default", "shipper")
ISSUER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an issuer")]).public_bytes()


def test_digests_are_those_that_the_core_makes() -> None:
    """tests/cext/test_revoked.c has the same three."""
    assert revoked.of_identity(SHIPPER) == "ec8315f56f5bd4e3db39a53eaddc9616"
    assert revoked.of_serial("example.org", 0x0A1B2C) == "04f293c147a1a0d9e632bdd3736a94fe"
    assert revoked.of_issued(ISSUER, 0x0A1B2C) == "ab1f2f886aa70aa87e6faf81af30cbc6"


def test_digests_are_of_one_domain_one_issuer_and_one_number() -> None:
    digests = [
        revoked.of_serial("example.org", 1),
        revoked.of_serial("example.com", 1),
        revoked.of_serial("example.org", 2),
        revoked.of_issued(ISSUER, 1),
        revoked.of_issued(b"", 1),
        revoked.of_identity(SHIPPER),
    ]
    assert len(set(digests)) == len(digests)
    assert {len(one) for one in digests} == {32}


def test_packed_set_tells_what_it_holds() -> None:
    digests = [revoked.of_serial("example.org", number) for number in range(200)]
    kept = revoked.packed(digests[::2])
    assert [revoked.holds(kept, one) for one in digests] == [True, False] * 100
    assert not revoked.holds(b"", digests[0])
