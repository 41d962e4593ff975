"""Certificates as the embedded issuer makes them, for tests that hold the CA's signer themselves."""

from __future__ import annotations

from datetime import datetime, timedelta

from nodeseal.authority.signer import Signer
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity import embedded
from nodeseal.identity.issuer import Svid
from nodeseal.identity.key import PrivateKey
from nodeseal.identity.presented import svid_of
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId


def issue(
    signer: Signer, identity: SpiffeId, *, lifetime: timedelta, now: datetime, kind: KeyKind = KeyKind.P256
) -> Svid:
    """A certificate for a fresh key. Raises AuthorityError, see Signer.sign."""
    key = PrivateKey.generate(kind)
    signed = embedded.sign(signer, identity, key.request(str(identity)).decode(), lifetime=lifetime, now=now)
    bundle = TrustBundle.read(signer.trust_domain, signer.bundle_pem)
    return svid_of(identity, signed.chain_pem, key, bundle, now=now, issued=signed.issued)
