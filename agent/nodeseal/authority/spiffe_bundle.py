"""Trust bundles of trust domains: certificates in PEM form, or SPIFFE's form of JWKS, read and written
(https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md, section 4)."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeseal.authority.certificates import parse, pem
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.rules import UNREADABLE, signing_fault

MAX_BYTES = 256 * 1024
"""Largest bundle."""

_X509 = "x509-svid"
_NUMBER_MAX = 2**64 - 1  # 4.1.1: "at least 64 bits of precision"


@dataclass(frozen=True, slots=True)
class SpiffeBundle:
    """What a bundle says."""

    anchors: str
    """Certificates of CAs in PEM form. "": none, which is said by a domain that has revoked all of its keys, or that
    has no key which is known here (4.1.3): none of its workloads is trusted."""
    sequence: int | None = None
    """Grows with each change. None: it does not say."""
    refresh_hint: int | None = None
    """How often to look for another one, in seconds. None: it does not say."""


def read_bundle_file(path: Path) -> str:
    """See read_bundle. Raises AuthorityError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AuthorityError(f"cannot read the bundle {path}: {error.strerror or error}") from error
    return read_bundle(data, str(path))


def read_bundle(data: bytes, name: str) -> str:
    """The anchors of a bundle in either form, see SpiffeBundle; of PEM at least one. Raises AuthorityError; `name`
    stands for the bundle in its text."""
    if b"-----BEGIN" not in data:
        return read_jwks(data, name).anchors
    _check_size(data, name)
    try:
        certificates = parse(data)
    except ValueError as error:
        raise _no_bundle(name, error) from None
    anchors = "".join(pem(cert) for cert in certificates if signing_fault(cert) is None)
    if not anchors:
        raise AuthorityError(f"the bundle {name} has no certificate of a CA that may sign others")
    return anchors


def read_jwks(data: bytes, name: str) -> SpiffeBundle:
    """A bundle in SPIFFE's form. Raises AuthorityError, as read_bundle does."""
    _check_size(data, name)
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        keys = document["keys"]
        if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
            raise ValueError("`keys` is no list of keys")
        sequence, hint = (_number(document, field) for field in ("spiffe_sequence", "spiffe_refresh_hint"))
    except KeyError:
        raise _no_bundle(name, "it has no `keys`") from None
    except (ValueError, RecursionError) as error:
        raise _no_bundle(name, error) from None
    # What is for other uses (JWT-SVID), or cannot be used, is passed over (4.1.3, 4.2.2).
    anchors = [cert for cert in map(_certificate, keys) if cert is not None and signing_fault(cert) is None]
    return SpiffeBundle("".join(map(pem, dict.fromkeys(anchors))), sequence, hint)


def has_jwk(cert: x509.Certificate) -> bool:
    """Whether a bundle can have it: there is a form for its kind of key."""
    public = cert.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        return public.curve.name in _CURVES
    return isinstance(public, rsa.RSAPublicKey | ed25519.Ed25519PublicKey)


def write_jwks(anchors: str, sequence: int, refresh_hint: int) -> bytes:
    """The bundle of these certificates (PEM), each with a kind of key that has_jwk knows."""
    keys = [_key(cert) for cert in dict.fromkeys(parse(anchors.encode()))]
    document = {"keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": refresh_hint}
    return json.dumps(document, indent=1).encode() + b"\n"


def _check_size(data: bytes, name: str) -> None:
    if len(data) > MAX_BYTES:
        raise AuthorityError(f"the bundle {name} is larger than {MAX_BYTES >> 10} KiB")


def _no_bundle(name: str, why: object) -> AuthorityError:
    return AuthorityError(f"{name} is no trust bundle, neither PEM nor JWKS: {' '.join(str(why).split())[:200]}")


def _number(document: dict[str, Any], field: str) -> int | None:
    value = document.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _NUMBER_MAX:
        raise ValueError(f"`{field}` is no number from 0 to {_NUMBER_MAX}")
    return value


def _certificate(key: dict[str, Any]) -> x509.Certificate | None:
    """None: the key is for something else, or cannot be used."""
    if key.get("use") != _X509:
        return None
    try:
        # RFC 7517, 4.7; X509-SVID, 6.2, wants exactly one.
        (text,) = key["x5c"]
        der = x509.load_der_x509_certificate(b64decode(text, validate=True))
        return parse(pem(der).encode())[0]
    except (*UNREADABLE, KeyError):
        return None


def _key(cert: x509.Certificate) -> dict[str, Any]:
    """RFC 7517; the parameters of each kind of key: RFC 7518, section 6, and RFC 8037, section 2."""
    public = cert.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in _CURVES:
        length = (public.curve.key_size + 7) // 8
        numbers = public.public_numbers()
        kind = {"kty": "EC", "crv": _CURVES[public.curve.name]}
        kind |= {"x": _base64url(numbers.x, length), "y": _base64url(numbers.y, length)}
    elif isinstance(public, rsa.RSAPublicKey):
        of = public.public_numbers()
        kind = {"kty": "RSA", "n": _base64url(of.n), "e": _base64url(of.e)}
    elif isinstance(public, ed25519.Ed25519PublicKey):
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        kind = {"kty": "OKP", "crv": "Ed25519", "x": _base64url(int.from_bytes(raw), len(raw))}
    else:
        raise AuthorityError(f"a trust anchor has a key that is no kind of JWKS: {type(public).__name__}")
    return {"use": _X509, **kind, "x5c": [b64encode(cert.public_bytes(Encoding.DER)).decode()]}


_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


def _base64url(number: int, length: int = 0) -> str:
    data = number.to_bytes(length or (number.bit_length() + 7) // 8)
    return urlsafe_b64encode(data).rstrip(b"=").decode()
