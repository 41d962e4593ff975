"""What an issuer presents as a workload's certificate, made sure of before anybody gets to see it.

Peers are stricter (cext/src/wire/svid.c); here it is found out that the certificate is for the key and the identity
that were meant, and that it is of use now, so that a mistake of the issuer is told where it can be understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeseal.authority.certificates import fingerprint, is_signed_by, parse
from nodeseal.identity.issuer import Svid
from nodeseal.identity.key import PrivateKey
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId

_CHAIN_MAX = 10  # as many as a peer looks at


class PresentedError(ValueError):
    """A certificate is not what it has to be. Words that follow "the certificate"."""


def svid_of(
    identity: SpiffeId,
    chain_pem: str,
    key: PrivateKey,
    bundle: TrustBundle,
    *,
    now: datetime,
    issued: datetime | None = None,
    delivered: bool = False,
) -> Svid:
    """An SVID of the certificates in PEM form, the leaf first. `issued`: by the issuer's clock, if it says; the anchor
    is found in the bundle; `delivered`: see Svid. Raises PresentedError."""
    chain = read_chain(chain_pem)
    leaf = chain[0]
    if public_key_of(leaf) != key.public:
        raise PresentedError("is for another key")
    if (found := uris_of(leaf)) != [str(identity)]:
        raise PresentedError(f"is for {', '.join(one[:200] for one in found) or 'nobody'}, not for {identity}")
    if leaf.not_valid_after_utc <= now:
        raise PresentedError(f"expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}")
    anchor = anchor_of(chain, bundle)
    if anchor is None:
        raise PresentedError(f"is not signed by a trust anchor of {bundle.trust_domain}")
    began = leaf.not_valid_before_utc if issued is None else issued
    return Svid(
        identity=identity,
        chain_pem=chain_pem,
        key=key,
        issued=min(max(began, leaf.not_valid_before_utc), leaf.not_valid_after_utc),
        not_after=leaf.not_valid_after_utc,
        serial=f"{leaf.serial_number:x}",
        anchor=anchor,
        issuer_name=leaf.issuer.public_bytes(),
        delivered=delivered,
    )


def read_chain(chain_pem: str) -> list[x509.Certificate]:
    """The certificates, the leaf first. Raises PresentedError."""
    try:
        chain = parse(chain_pem.encode())
    except ValueError:
        raise PresentedError("cannot be read as PEM") from None
    if len(chain) > _CHAIN_MAX:
        raise PresentedError(f"comes with {len(chain) - 1} others; peers look at {_CHAIN_MAX} in all")
    return chain


def public_key_of(cert: x509.Certificate) -> bytes:
    """SubjectPublicKeyInfo in DER."""
    return cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def uris_of(cert: x509.Certificate) -> list[str]:
    """The URIs among its alternative names."""
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def anchor_of(chain: Sequence[x509.Certificate], bundle: TrustBundle) -> str | None:
    """The fingerprint of the anchor that the chain leads to. Validity is not looked at."""
    anchors = parse(bundle.pem.encode()) if bundle.fingerprints else []
    at = chain[0]
    for _ in chain:
        if (found := next((one for one in anchors if is_signed_by(at, one)), None)) is not None:
            return fingerprint(found)
        above = next((one for one in chain[1:] if is_signed_by(at, one) and one != at), None)
        if above is None:
            return None
        at = above
    return None
