"""Revocation lists of other issuers, read from files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nodeseal.authority.crl import read_crl
from nodeseal.authority.errors import AuthorityError
from nodeseal.mesh.revoked import of_issued, unpacked
from support.certificates import PARTNER, make_crl

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def as_pem(der: bytes) -> bytes:
    return x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("form", [bytes, as_pem])
def test_list_names_certificates_of_its_issuer(tmp_path: Path, form: type[bytes]) -> None:
    path = tmp_path / "a.crl"
    path.write_bytes(form(make_crl(5, 1 << 150, now=NOW)))
    found = read_crl(path)
    assert unpacked(found.digests) == {of_issued(PARTNER.public_bytes(), serial) for serial in (5, 1 << 150)}
    assert found.next_update == NOW + timedelta(7)


def test_file_may_hold_several_lists(tmp_path: Path) -> None:
    other = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Another")])
    path = tmp_path / "a.pem"
    path.write_bytes(as_pem(make_crl(5)) + b"between them is text\n" + as_pem(make_crl(6, name=other)))
    assert unpacked(read_crl(path).digests) == {
        of_issued(PARTNER.public_bytes(), 5),
        of_issued(other.public_bytes(), 6),
    }


def test_empty_list_revokes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.crl"
    path.write_bytes(make_crl())
    assert read_crl(path).digests == b""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no revocation list that can be used"),
        (b"nonsense", "is no revocation list that can be used"),
        (b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n", "is no revocation list that can be used"),
        (make_crl(5)[:-1], "is no revocation list that can be used"),
        (make_crl(5, extension=x509.DeltaCRLIndicator(1)), "it is a delta, and not the whole list"),
        (
            make_crl(
                5,
                extension=x509.IssuingDistributionPoint(None, None, False, False, None, True, False),
            ),
            "it is of several issuers (indirect)",
        ),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.crl"
    path.write_bytes(content)
    with pytest.raises(AuthorityError) as caught:
        read_crl(path)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="No such file"):
        read_crl(tmp_path / "none.crl")
