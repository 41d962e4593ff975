"""Certificates and lists that are well formed, and have what cryptography does not read: each is refused in one line,
wherever it comes from."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal.authority.certificates import parse
from nodeseal.authority.crl import read_crl
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.live_signer import LiveSigner
from nodeseal.authority.spiffe_bundle import read_bundle, read_jwks
from nodeseal.identity import workload_api
from nodeseal.identity.presented import PresentedError, read_chain
from nodeseal.identity.trust import TrustBundle, TrustSet
from nodeseal.mesh.federated import Federated
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.trust_anchor import TrustAnchor
from nodeseal.node.federation import Federation
from support.anchors import make_ca, root_of
from support.bundle_server import bundle_of

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
X400 = b"\x30\x02\xa3\x00"
"""GeneralNames with an x400Address (RFC 5280, 4.2.1.6)."""


def odd_certificate() -> str:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    names = x509.UnrecognizedExtension(x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, X400)
    made = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


ODD = odd_certificate()


def test_bundles_and_chains_with_one_are_refused() -> None:
    with pytest.raises(ValueError, match="not supported"):
        parse(ODD.encode())
    with pytest.raises(AuthorityError, match="is no trust bundle"):
        read_bundle(ODD.encode(), "it")
    with pytest.raises(PresentedError):
        read_chain(ODD)
    assert read_jwks(bundle_of(ODD), "it").anchors == ""


def test_trust_anchor_that_is_one_verifies_nobody_and_the_others_do(tmp_path: Path) -> None:
    root = root_of(make_ca(tmp_path / "ca"))
    issuer = TrustBundle.read("example.org", root.pem)
    found = TrustSet.of(issuer, root.key, [root, TrustAnchor("1" * 64, ODD)])
    assert found.bundle.fingerprints == {root.key}
    assert [one.fingerprint for one in found.unusable] == ["1" * 64]


def test_federated_bundle_that_is_one_is_told(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    asyncio.run(federation.take(Mesh.build("example.org", (), federated=[Federated("other.org", ODD)])))
    assert [problem.word.value for problem in federation.problems()] == ["bundle-unread"]


def test_ca_directory_with_one_is_told(tmp_path: Path) -> None:
    ca = make_ca(tmp_path / "ca")
    (ca / "root.pem").write_text(ODD)
    signer = LiveSigner(ca, lambda: datetime.now(UTC))
    assert signer.why is not None


def test_revocation_list_that_is_one_is_told(tmp_path: Path) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NAME)
        .last_update(now)
        .next_update(now + timedelta(days=1))
        .add_extension(x509.UnrecognizedExtension(x509.ExtensionOID.ISSUER_ALTERNATIVE_NAME, X400), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "odd.crl"
    path.write_bytes(made.public_bytes(Encoding.DER))
    with pytest.raises(AuthorityError, match="is no revocation list that can be used"):
        read_crl(path)


def test_other_domains_anchor_that_is_one_does_not_count() -> None:
    """Of all that a Workload API gives at once it alone is passed over."""
    assert not workload_api._may_sign(x509.load_pem_x509_certificate(ODD.encode()))
