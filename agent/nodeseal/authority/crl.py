"""Certificate revocation lists of other issuers (RFC 5280, 5), as files have them: DER or PEM.

What a list says is taken for its issuer's: a file on the node is as good as its configuration. Its signature is not
looked at, for the issuer's certificate need not be here. A list can only revoke what its own issuer has issued.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.rules import UNREADABLE
from nodeseal.mesh.revoked import of_issued, packed

MAX_BYTES = 64 << 20
"""Largest file that is read: more than a million entries."""

_PEM = b"-----BEGIN X509 CRL-----"
_END = b"-----END X509 CRL-----"
_SEQUENCE, _INTEGER = 0x30, 0x02


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What a file says."""

    digests: bytes
    """What cores know the certificates by, see nodeseal.mesh.revoked."""
    next_update: datetime | None
    """When the earliest of its lists should have been replaced; None: they do not say."""


def read_crl(path: Path) -> RevocationList:
    """All lists of a file; at least one. Raises AuthorityError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AuthorityError(f"cannot read the revocation list {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise AuthorityError(f"the revocation list {path} is larger than {MAX_BYTES >> 20} MiB")
    try:
        lists = [_load_pem(one) for one in data.split(_PEM)[1:]] if _PEM in data else [x509.load_der_x509_crl(data)]
        digests: list[str] = []
        for one in lists:
            _check(one)
            issuer = _issuer_name(one.tbs_certlist_bytes)
            digests += [of_issued(issuer, entry.serial_number) for entry in one]
    except UNREADABLE as error:
        raise AuthorityError(f"{path} is no revocation list that can be used: {_line(error)}") from None
    updates = [one.next_update_utc for one in lists if one.next_update_utc is not None]
    return RevocationList(packed(digests), min(updates, default=None))


def _load_pem(text: bytes) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(_PEM + text.split(_END)[0] + _END + b"\n")


def _check(crl: x509.CertificateRevocationList) -> None:
    """Raises ValueError for a list that says something else than which certificates of its issuer are revoked."""
    for extension in crl.extensions:
        if isinstance(extension.value, x509.DeltaCRLIndicator):
            raise ValueError("it is a delta, and not the whole list")
        if isinstance(extension.value, x509.IssuingDistributionPoint) and extension.value.indirect_crl:
            raise ValueError("it is of several issuers (indirect)")


def _issuer_name(tbs: bytes) -> bytes:
    """The issuer's name, byte for byte: TBSCertList ::= SEQUENCE { version INTEGER OPTIONAL, signature SEQUENCE, issuer
    Name, ... } (RFC 5280, 5.1). Raises ValueError."""
    at, _end = _content(tbs, 0, _SEQUENCE)
    if tbs[at : at + 1] == bytes([_INTEGER]):
        _, at = _content(tbs, at, _INTEGER)
    _, at = _content(tbs, at, _SEQUENCE)
    _, end = _content(tbs, at, _SEQUENCE)
    return tbs[at:end]


def _content(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """(begin, end) of the content of the element at this place. Raises ValueError."""
    if at + 2 > len(der) or der[at] != tag:
        raise ValueError("its form is not that of a revocation list")
    length, begin = der[at + 1], at + 2
    if length & 0x80:
        more = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + more], "big"), begin + more
    if begin + length > len(der):
        raise ValueError("it is cut off")
    return begin, begin + length


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or "it is malformed"
