"""CAs and workloads with each kind of key: what their certificates say, and that OpenSSL takes each by each."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from nodeseal.authority.certificates import authority_key_identifier, pem
from nodeseal.authority.creation import init_authority
from nodeseal.authority.node_certificates import sign_node
from nodeseal.authority.renewal import accept, renew, request, sign
from nodeseal.authority.signer import Signer
from nodeseal.authority.signing_key import CaKey, FileKey, LeafKey, T, Unsigned, kind_of
from nodeseal.authority.state_keys import StateKeys
from nodeseal.authority.store import read_certificates, read_key
from nodeseal.cli.main import main
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.mesh.spiffe import SpiffeId
from support.issued import issue

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
SHIPPER = SpiffeId("example.org", "default", "shipper")
SIGNATURES = {
    KeyKind.P256: SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    KeyKind.P384: SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    KeyKind.ED25519: SignatureAlgorithmOID.ED25519,
}


@pytest.fixture(scope="module", params=KeyKind, ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> KeyKind:
    kind: KeyKind = request.param
    return kind


@pytest.fixture(scope="module")
def ca(kind: KeyKind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with keys of this kind."""
    directory = tmp_path_factory.mktemp("ca") / "ca"
    init_authority(directory, trust_domain="example.org", kind=kind, now=NOW)
    return directory


@pytest.fixture
def mine(ca: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(ca, tmp_path / "mine"))


def kind_at(directory: Path, name: str = "intermediate.pem") -> str:
    return kind_of(read_certificates(directory / name)[0].public_key())


def extensions(cert: x509.Certificate) -> dict[x509.ObjectIdentifier, tuple[bool, x509.ExtensionType]]:
    return {one.oid: (one.critical, one.value) for one in cert.extensions}


def usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=not leaf, crl_sign=not leaf, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def names(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


# What certificates say


@pytest.mark.parametrize("leaf_kind", KeyKind, ids=lambda kind: kind.value)
def test_leaf_says_this_and_nothing_else(ca: Path, kind: KeyKind, leaf_kind: KeyKind) -> None:
    signer = Signer.load(ca, NOW)
    leaf = x509.load_pem_x509_certificates(
        issue(signer, SHIPPER, lifetime=DAY, now=NOW, kind=leaf_kind).chain_pem.encode()
    )[0]
    assert list(leaf.subject) == []
    assert leaf.issuer == signer.chain[0].subject
    assert kind_of(leaf.public_key()) == leaf_kind
    assert leaf.signature_algorithm_oid == SIGNATURES[kind]
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (NOW - timedelta(seconds=60), NOW + DAY)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    key_id = x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())
    assert extensions(leaf) == {
        x509.BasicConstraints.oid: (True, x509.BasicConstraints(ca=False, path_length=None)),
        x509.KeyUsage.oid: (True, usage(leaf=True)),
        x509.ExtendedKeyUsage.oid: (False, purposes),
        x509.SubjectAlternativeName.oid: (True, names(str(SHIPPER))),
        x509.SubjectKeyIdentifier.oid: (False, key_id),
        x509.AuthorityKeyIdentifier.oid: (False, authority_key_identifier(signer.chain[0])),
    }


@pytest.mark.parametrize(("name", "length", "days"), [("root", 1, 3650), ("intermediate", 0, 365)])
def test_signing_certificate_says_this_and_nothing_else(
    ca: Path, kind: KeyKind, name: str, length: int, days: int
) -> None:
    (root,), (cert,) = read_certificates(ca / "root.pem"), read_certificates(ca / f"{name}.pem")
    assert kind_of(cert.public_key()) == kind
    assert cert.signature_algorithm_oid == SIGNATURES[kind]
    began, end = cert.not_valid_before_utc, cert.not_valid_after_utc
    assert (began, end) == (NOW - timedelta(minutes=5), NOW + days * DAY)
    assert cert.subject.rfc4514_string().startswith(f"CN=nodeseal {name} ")
    assert extensions(cert) == {
        x509.BasicConstraints.oid: (True, x509.BasicConstraints(ca=True, path_length=length)),
        x509.KeyUsage.oid: (True, usage(leaf=False)),
        x509.SubjectAlternativeName.oid: (False, names("spiffe://example.org")),
        x509.SubjectKeyIdentifier.oid: (False, x509.SubjectKeyIdentifier.from_public_key(cert.public_key())),
        x509.AuthorityKeyIdentifier.oid: (False, authority_key_identifier(root)),
    }


def test_serial_numbers_are_random(ca: Path) -> None:
    """RFC 5280, 4.1.2.2: of 20 bytes at most; of 64 bits of a random source at least (CA/Browser Forum, 7.1)."""
    signer = Signer.load(ca, NOW)
    serials = {int(issue(signer, SHIPPER, lifetime=DAY, now=NOW).serial, 16) for _ in range(20)}
    serials |= {read_certificates(ca / name)[0].serial_number for name in ("root.pem", "intermediate.pem")}
    assert len(serials) == 22
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert max(serials) - min(serials) > 1 << 96


@pytest.mark.parametrize("leaf_kind", KeyKind, ids=lambda kind: kind.value)
def test_openssl_verifies_each_kind_by_each(ca: Path, tmp_path: Path, leaf_kind: KeyKind) -> None:
    chain = issue(Signer.load(ca, NOW), SHIPPER, lifetime=DAY, now=NOW, kind=leaf_kind).chain_pem
    (tmp_path / "chain.pem").write_text(chain)
    command = ["openssl", "verify", "-x509_strict", "-auth_level", "2", "-attime", str(int(NOW.timestamp()))]
    files = ["-CAfile", str(ca / "root.pem"), "-untrusted", "chain.pem", "chain.pem"]
    done = subprocess.run(command + files, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "chain.pem: OK\n", done.stderr


# Of which kind the next one is


def test_next_intermediate_has_the_kind_of_the_present_one(mine: Path, kind: KeyKind) -> None:
    renew(mine, now=NOW)
    assert kind_at(mine) == kind
    assert kind_of(request(mine).public_key()) == kind


def test_intermediate_that_was_lost_is_asked_for_anew(mine: Path, kind: KeyKind) -> None:
    (mine / "intermediate.pem").write_text("lost")
    assert kind_of(request(mine).public_key()) == kind


@pytest.mark.parametrize("other", KeyKind, ids=lambda kind: kind.value)
def test_next_intermediate_has_the_kind_that_was_asked_for(mine: Path, kind: KeyKind, other: KeyKind) -> None:
    renew(mine, now=NOW, kind=other)
    assert (kind_at(mine), kind_at(mine, "root.pem")) == (other, kind)
    assert kind_of(request(mine).public_key()) == other
    assert Signer.load(mine, NOW).chain[0].signature_algorithm_oid == SIGNATURES[kind]


def test_first_intermediate_of_a_node_has_the_kind_of_the_root(mine: Path, kind: KeyKind, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir(mode=0o700)
    shutil.copy(mine / "root.pem", node)
    (tmp_path / "ask.csr").write_bytes(request(node).public_bytes(Encoding.PEM))
    (tmp_path / "answer.pem").write_text(pem(sign(mine, tmp_path / "ask.csr", now=NOW)))
    accept(node, tmp_path / "answer.pem", now=NOW)
    assert kind_at(node) == kind
    assert issue(Signer.load(node, NOW), SHIPPER, lifetime=DAY, now=NOW)


def test_commands_say_the_kind(tmp_path: Path, kind: KeyKind, capsys: pytest.CaptureFixture[str]) -> None:
    def say(*arguments: str) -> dict[str, object]:
        assert main(["ca", *arguments, "-o", "json"]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    ca, ask, answer = (str(tmp_path / name) for name in ("ca", "ask.csr", "answer.pem"))
    assert say("init", ca, "--key-type", kind.value)["key_type"] == kind
    assert say("request", ca, ask)["key_type"] == kind
    assert say("sign", ca, ask, answer)["key_type"] == kind
    assert say("renew", ca, "--certificate", answer)["key_type"] == kind
    certificates = say("show", ca)["certificates"]
    assert isinstance(certificates, list)
    assert [one["key_type"] for one in certificates] == [kind, kind]
    assert say("renew", ca, "--key-type", "p384")["key_type"] == "p384"
    assert main(["ca", "renew", ca, "--certificate", answer, "--key-type", "p256"]) == 1
    assert "leave one out" in capsys.readouterr().err


# Whatever signs does it through one interface


class Elsewhere:
    """A key whose bytes nobody here has, as of a hardware module."""

    def __init__(self, key: FileKey) -> None:
        self._key = key
        self.signed = 0

    @property
    def public_key(self) -> CaKey:
        return self._key.public_key

    def sign(self, unsigned: Unsigned[T]) -> T:
        self.signed += 1
        return self._key.sign(unsigned)


def test_key_that_is_elsewhere_signs_for_workloads(ca: Path) -> None:
    roots, chain = read_certificates(ca / "root.pem"), read_certificates(ca / "intermediate.pem")
    key = Elsewhere(read_key(ca / "intermediate.key"))
    signer = Signer(ca, "example.org", chain, roots, roots[0], key)
    assert issue(signer, SHIPPER, lifetime=DAY, now=NOW).anchor in signer.anchors
    assert key.signed == 1


def test_nodes_certificates_are_for_each_kind(kind: KeyKind, tmp_path: Path) -> None:
    keys = StateKeys.load(tmp_path, "example.org", NOW)
    public = FileKey.generate(kind).public_key
    assert isinstance(public, LeafKey)
    cert = sign_node(keys.nodes, "example.org", "node1", public, lifetime=DAY, now=NOW)
    cert.verify_directly_issued_by(keys.nodes.certificate)
    assert kind_of(cert.public_key()) == kind


def test_keys_do_not_show(ca: Path, kind: KeyKind) -> None:
    assert repr(read_key(ca / "root.key")) == f"FileKey({kind})"
