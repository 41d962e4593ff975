"""Requests for certificates (PKCS 10), which may come from anybody: nothing is taken of them but the key."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nodeseal.authority.refused import Refused
from nodeseal.authority.signing_key import LeafKey
from nodeseal.contracts.authority import ServiceWord


def requested_key(pem: str) -> LeafKey:
    """The key of a request that is signed by it. Raises Refused.

    What kind of key it is comes before its signature: a large RSA key costs its verifier more than its owner.
    """
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
    except UnsupportedAlgorithm:
        raise _wrong_key() from None
    except ValueError:
        raise Refused(ServiceWord.CSR_UNREADABLE, "the request is no PKCS 10 in PEM form; make another") from None
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            raise _wrong_key()
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise _wrong_key()
    try:
        good = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        good = False
    if not good:
        raise Refused(ServiceWord.CSR_SIGNATURE, "the request is not signed by its own key; make another")
    return key


def _wrong_key() -> Refused:
    return Refused(ServiceWord.CSR_KEY, "the key of the request is none of P-256, P-384 and Ed25519; make another")
