"""Trust bundles of other trust domains: certificates in PEM form, or SPIFFE's form of JWKS
(https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md, section 4)."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

from cryptography import x509

from nodeseal.authority.certificates import parse, pem
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.rules import signing_fault

MAX_BYTES = 256 * 1024
"""Largest bundle."""

_X509 = "x509-svid"


def read_bundle_file(path: Path) -> str:
    """See read_bundle. Raises AuthorityError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AuthorityError(f"cannot read the bundle {path}: {error.strerror or error}") from error
    return read_bundle(data, str(path))


def read_bundle(data: bytes, name: str) -> str:
    """The anchors of a bundle in PEM form, at least one: certificates of CAs. Raises AuthorityError; `name` stands for
    the bundle in its text."""
    if len(data) > MAX_BYTES:
        raise AuthorityError(f"the bundle {name} is larger than {MAX_BYTES >> 10} KiB")
    try:
        found = parse(data) if b"-----BEGIN" in data else _of_jwks(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise AuthorityError(f"{name} is no trust bundle, neither PEM nor JWKS: {why}") from None
    anchors = [cert for cert in found if signing_fault(cert) is None]
    if not anchors:
        raise AuthorityError(f"the bundle {name} has no certificate of a CA that may sign others")
    return "".join(map(pem, anchors))


def _of_jwks(document: Any) -> list[x509.Certificate]:
    """Keys for other uses (JWT-SVID) are passed over. Raises ValueError, KeyError, TypeError, AttributeError."""
    certificates = []
    for key in document["keys"]:
        if key.get("use") != _X509:
            continue
        # RFC 7517, 4.7; the standard wants exactly one.
        (text,) = key["x5c"]
        der = x509.load_der_x509_certificate(b64decode(text, validate=True))
        certificates += parse(pem(der).encode())
    return certificates
