"""What the profile `fips` of a node's `tls` refuses of certificates: OpenSSL's module verifies ECDSA and RSA alone."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from nodeseal.authority.certificates import fingerprint, parse
from nodeseal.identity.issuer import Svid
from nodeseal.identity.trust import TrustBundle


def unapproved(certificates: Iterable[x509.Certificate]) -> str | None:
    """Why these cannot be used with the profile, one line with its remedy; None: they can."""
    for cert in certificates:
        if isinstance(cert.public_key(), ed25519.Ed25519PublicKey):
            name = cert.subject.rfc4514_string() or "a workload's certificate"
            return (
                f"{name} has an Ed25519 key, which the profile fips of 'tls' refuses; "
                "use p256 or p384 for all of the CA, or leave the profile out"
            )
    return None


def unapproved_svid(svid: Svid, bundle: TrustBundle) -> str | None:
    """The same of all that peers verify a workload by: its certificate, the intermediates, and its anchor."""
    anchors = (cert for cert in parse(bundle.pem.encode()) if fingerprint(cert) == svid.anchor)
    return unapproved([*parse(svid.chain_pem.encode()), *anchors])
