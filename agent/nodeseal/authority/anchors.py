"""Trust anchors as operators bring them: read from files, looked at, described."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from nodeseal.authority.certificates import is_signed_by, parse, pem, stated_trust_domain
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.rules import name_fault, signing_fault
from nodeseal.mesh.trust_anchor import TrustAnchor

_MAX_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class AnchorDescription:
    """What an anchor says of itself."""

    subject: str
    trust_domain: str | None
    """The one that it is limited to; None when it names none."""
    not_before: datetime
    not_after: datetime

    @classmethod
    def of(cls, pem: str) -> AnchorDescription | None:
        """None if it is no certificate."""
        try:
            (cert,) = parse(pem.encode())
        except ValueError:
            return None
        return cls(
            cert.subject.rfc4514_string(),
            stated_trust_domain(cert),
            cert.not_valid_before_utc,
            cert.not_valid_after_utc,
        )


def usable_anchor(pem: str) -> str | None:
    """Why nobody can be verified by this certificate, in words that follow "it"; None: they can."""
    try:
        (cert,) = parse(pem.encode())
    except ValueError:
        return "is no certificate that can be read"
    return signing_fault(cert)


def read_anchors(path: Path) -> list[TrustAnchor]:
    """The certificates in a file (PEM), each once; at least one. Raises AuthorityError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise AuthorityError(f"cannot read {path}: {error.strerror or error}; name a file of certificates") from error
    if len(data) > _MAX_FILE:
        raise AuthorityError(f"{path} is larger than 1 MiB; name a file of certificates")
    try:
        anchors = {one.key: one for one in (TrustAnchor.read(pem(cert)) for cert in parse(data))}
    except ValueError:
        anchors = {}
    if not anchors:
        raise AuthorityError(f"{path} holds no certificate in PEM form that can be used; bring the root.pem of a CA")
    return list(anchors.values())


def faults(anchor: TrustAnchor, trust_domain: str, now: datetime) -> tuple[str | None, str | None]:
    """Why a certificate is no trust anchor of a trust domain, and what makes it a useless one, which may be meant; each
    in words that follow "it", or None."""
    (cert,) = parse(anchor.pem.encode())
    fault = signing_fault(cert)
    stated = stated_trust_domain(cert)
    if fault is None and stated not in (None, trust_domain):
        fault = f"is of the trust domain {stated}, not of {trust_domain}"
    return fault or name_fault(cert, trust_domain), _doubt(cert, now)


def _doubt(cert: x509.Certificate, now: datetime) -> str | None:
    if now >= cert.not_valid_after_utc:
        return f"expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M}Z"
    if now < cert.not_valid_before_utc:
        return f"is not valid before {cert.not_valid_before_utc:%Y-%m-%d %H:%M}Z"
    if not is_signed_by(cert, cert):
        return "is not self-signed: an intermediate need not be an anchor, its root has to be"
    return None
