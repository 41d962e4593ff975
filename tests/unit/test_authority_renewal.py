"""The next intermediate: made at home, or asked for where the root's key is; whole or not at all, whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nodeseal.authority import store
from nodeseal.authority.certificates import key_fingerprint
from nodeseal.authority.creation import init_authority
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.renewal import accept, renew, request, sign
from nodeseal.authority.signer import Signer
from nodeseal.mesh.spiffe import SpiffeId
from support.issued import issue

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(days=330)
YEAR = timedelta(days=365)
SHIPPER = SpiffeId("example.org", "default", "shipper")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A CA with the root's key, a year old but for a month."""
    init_authority(tmp_path / "home", trust_domain="example.org", now=NOW)
    return tmp_path / "home"


@pytest.fixture
def away(home: Path, tmp_path: Path) -> Path:
    """The same on a node: without the root's key."""
    directory = Path(shutil.copytree(home, tmp_path / "away"))
    (directory / "root.key").unlink()
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def intermediate(directory: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / "intermediate.pem").read_bytes())


def refusal(call: object) -> str:
    """The one line of what must not succeed."""
    assert callable(call)
    with pytest.raises(AuthorityError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert "PRIVATE" not in text
    return text


def asked(directory: Path, tmp_path: Path) -> Path:
    """A request of this directory, as a file."""
    file = tmp_path / "request.csr"
    file.write_bytes(request(directory).public_bytes(Encoding.PEM))
    return file


def signed(home: Path, file: Path, tmp_path: Path, now: datetime = LATER) -> Path:
    """A certificate for it, as a file."""
    answer = tmp_path / "certificate.pem"
    answer.write_bytes(sign(home, file, now=now).public_bytes(Encoding.PEM))
    return answer


# Where the root's key is


def test_next_intermediate_has_a_key_and_a_year_of_its_own(home: Path) -> None:
    before = intermediate(home)
    made = renew(home, now=LATER)
    assert intermediate(home) == made
    assert made.not_valid_after_utc == LATER + YEAR
    assert made.public_key() != before.public_key()
    assert made.issuer == before.issuer
    assert Signer.load(home, LATER).not_after == LATER + YEAR


def test_openssl_accepts_what_the_next_intermediate_issues(home: Path, tmp_path: Path) -> None:
    renew(home, now=LATER)
    (tmp_path / "chain.pem").write_text(
        issue(Signer.load(home, LATER), SHIPPER, lifetime=timedelta(days=1), now=LATER).chain_pem
    )
    command = ["openssl", "verify", "-x509_strict", "-attime", str(int(LATER.timestamp()))]
    files = ["-CAfile", str(home / "root.pem"), "-untrusted", "chain.pem", "chain.pem"]
    done = subprocess.run(command + files, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "chain.pem: OK\n", done.stderr


def test_renewal_leaves_the_files_that_were_there_with_their_modes(home: Path) -> None:
    root = (home / "root.pem").read_bytes()
    renew(home, now=LATER)
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert modes == {"root.pem": 0o644, "root.key": 0o600, "intermediate.pem": 0o644, "intermediate.key": 0o600}
    assert (home / "root.pem").read_bytes() == root


def test_next_intermediate_does_not_outlive_the_root(home: Path) -> None:
    end = x509.load_pem_x509_certificate((home / "root.pem").read_bytes()).not_valid_after_utc
    assert renew(home, now=end - timedelta(days=10)).not_valid_after_utc == end


def test_root_among_several_anchors_is_found(home: Path, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", trust_domain="example.org", now=NOW)
    (home / "root.pem").write_bytes((tmp_path / "other" / "root.pem").read_bytes() + (home / "root.pem").read_bytes())
    renew(home, now=LATER)
    assert Signer.load(home, LATER).not_after == LATER + YEAR


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda home: (home / "root.key").unlink(), "has no root.key: run this where it is, or ask"),
        (lambda home: shutil.copy(home / "intermediate.key", home / "root.key"), "root.key is not the key of"),
        (lambda home: (home / "root.key").write_text("x"), "root.key does not hold a private key"),
        (lambda home: (home / "root.pem").unlink(), "cannot read the CA's file"),
        (lambda home: (home / "root.key").chmod(0o640), "others can read the key in"),
    ],
    ids=["no key", "another key", "no pem", "no root", "readable"],
)
def test_root_that_cannot_sign_changes_nothing(home: Path, spoil: object, line: str) -> None:
    assert callable(spoil)
    spoil(home)
    before = content(home)
    assert line in refusal(lambda: renew(home, now=LATER))
    assert content(home) == before


def test_root_that_expired_signs_nothing(home: Path) -> None:
    before = content(home)
    assert "root.pem expired at 2036-02-27" in refusal(lambda: renew(home, now=NOW + 11 * YEAR))
    assert content(home) == before


# Whole or not at all


class Killed(BaseException):
    """The process has ended here."""


@contextlib.contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ends whoever changes names in a directory before the change number `step`; what was changed so far."""
    changes: list[str] = []
    replace, unlink, create = Path.replace, Path.unlink, store.create

    def note(what: str) -> None:
        if len(changes) == step:
            raise Killed
        changes.append(what)

    def replacing(path: Path, target: Path) -> Path:
        note(f"replace {Path(target).name}")
        return replace(path, target)

    def creating(path: Path, data: bytes, mode: int) -> None:
        note(f"create {path.name}")
        create(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replacing)
        patch.setattr(Path, "unlink", unlink)
        patch.setattr(store, "create", creating)
        with contextlib.suppress(Killed):
            yield changes


@pytest.mark.parametrize("step", range(6))
def test_renewal_that_is_killed_leaves_one_pair_or_the_other(
    home: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = intermediate(home)
    with killed_at(step, monkeypatch) as changes:
        renew(home, now=LATER)
    counts = "replace intermediate.pem" in changes
    assert counts == (step >= 4)
    assert Signer.load(home, LATER).chain[0] == intermediate(home)
    assert (intermediate(home) != before) == counts
    # And whoever comes next finds nothing in the way.
    renew(home, now=LATER + timedelta(days=1))
    assert Signer.load(home, LATER + timedelta(days=1)).not_after == LATER + timedelta(days=366)
    assert sorted(path.name for path in home.iterdir()) == [
        "intermediate.key",
        "intermediate.pem",
        "root.key",
        "root.pem",
    ]


def test_request_after_a_renewal_that_was_killed_does_not_lose_the_key_in_use(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(4, monkeypatch) as changes:
        renew(home, now=LATER)
    assert changes[-1] == "replace intermediate.pem"
    request(home)
    assert Signer.load(home, LATER).not_after == LATER + YEAR


def test_full_disk_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = content(home)
    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in refusal(lambda: renew(home, now=LATER))
    assert content(home) == before


def test_only_one_changes_the_directory_at_a_time(home: Path) -> None:
    descriptor = os.open(home, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert "somebody else changes the CA" in refusal(lambda: renew(home, now=LATER))
    finally:
        os.close(descriptor)
    renew(home, now=LATER)


# Where it is not


def test_request_is_signed_elsewhere_and_brought_back(home: Path, away: Path, tmp_path: Path) -> None:
    before = content(away)
    file = asked(away, tmp_path)
    # Until it is back, all goes on as it was.
    assert {**content(away), "intermediate-next.key": b""} == {**before, "intermediate-next.key": b""}
    assert (away / "intermediate-next.key").stat().st_mode & 0o777 == 0o600
    assert Signer.load(away, LATER).not_after == NOW + YEAR
    certificate = signed(home, file, tmp_path)
    assert content(home).keys() == {"root.pem", "root.key", "intermediate.pem", "intermediate.key"}
    accept(away, certificate, now=LATER)
    assert Signer.load(away, LATER).not_after == LATER + YEAR
    assert content(away).keys() == {"root.pem", "intermediate.pem", "intermediate.key"}


def test_node_gets_its_first_intermediate_by_request(home: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir(mode=0o700)
    shutil.copy(home / "root.pem", node)
    accept(node, signed(home, asked(node, tmp_path), tmp_path), now=LATER)
    assert Signer.load(node, LATER).trust_domain == "example.org"


def test_both_ends_print_the_same_of_the_key(home: Path, away: Path, tmp_path: Path) -> None:
    made = request(away)
    (tmp_path / "request.csr").write_bytes(made.public_bytes(Encoding.PEM))
    cert = sign(home, tmp_path / "request.csr", now=LATER)
    assert key_fingerprint(cert.public_key()) == key_fingerprint(made.public_key())
    assert len(key_fingerprint(made.public_key())) == 64


def test_nothing_but_the_key_of_a_request_is_taken(home: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    evil = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nodeseal root")])
    )
    evil = evil.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    evil = evil.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://other.org")]), critical=False
    )
    file = tmp_path / "request.csr"
    file.write_bytes(evil.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    cert = sign(home, file, now=LATER)
    assert cert.subject.rfc4514_string().startswith("CN=nodeseal intermediate ")
    assert cert.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]
    assert cert.public_key() == key.public_key()


def requested(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def forged() -> bytes:
    """With another key in it than the one that signed it."""
    other = x509.load_pem_x509_csr(requested(ec.generate_private_key(ec.SECP256R1())))
    good = x509.load_pem_x509_csr(requested(ec.generate_private_key(ec.SECP256R1())))
    body, here, there = good.public_bytes(Encoding.DER), point(good), point(other)
    assert body.count(here) == 1
    return x509.load_der_x509_csr(body.replace(here, there)).public_bytes(Encoding.PEM)


def point(found: x509.CertificateSigningRequest) -> bytes:
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    numbers = key.public_numbers()
    return numbers.x.to_bytes(32) + numbers.y.to_bytes(32)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "is no PKCS 10 in PEM form"),
        (b"\x00" * 70000, "is larger than 64 KiB"),
        (requested(rsa.generate_private_key(65537, 2048)), "is none of P-256, P-384 and Ed25519"),
        (requested(ec.generate_private_key(ec.SECP256K1())), "is none of P-256, P-384 and Ed25519"),
        (forged(), "is not signed by its own key"),
    ],
    ids=["empty", "large", "rsa", "secp256k1", "forged"],
)
def test_request_of_anybody_is_looked_at(home: Path, tmp_path: Path, data: bytes, line: str) -> None:
    file = tmp_path / "request.csr"
    file.write_bytes(data)
    assert line in refusal(lambda: sign(home, file, now=LATER))


def test_signing_needs_the_roots_key(away: Path, tmp_path: Path) -> None:
    file = asked(away, tmp_path)
    assert "has no root.key: bring the request to where it is" in refusal(lambda: sign(away, file, now=LATER))


def test_certificate_for_an_earlier_request_is_refused(home: Path, away: Path, tmp_path: Path) -> None:
    certificate = signed(home, asked(away, tmp_path), tmp_path)
    request(away)
    before = content(away)
    assert "it is not for the last request" in refusal(lambda: accept(away, certificate, now=LATER))
    assert content(away) == before


def test_certificate_of_another_ca_is_refused(away: Path, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", trust_domain="example.org", now=NOW)
    certificate = signed(tmp_path / "other", asked(away, tmp_path), tmp_path)
    before = content(away)
    assert "is not signed by" in refusal(lambda: accept(away, certificate, now=LATER))
    assert content(away) == before


def test_certificate_of_another_trust_domain_is_refused(home: Path, away: Path, tmp_path: Path) -> None:
    """By a root that the node trusts, which is for another domain."""
    init_authority(tmp_path / "other", trust_domain="other.org", now=NOW)
    (away / "root.pem").write_bytes((away / "root.pem").read_bytes() + (tmp_path / "other" / "root.pem").read_bytes())
    certificate = signed(tmp_path / "other", asked(away, tmp_path), tmp_path)
    text = refusal(lambda: accept(away, certificate, now=LATER))
    assert "is for the trust domain other.org, and " in text


def test_certificate_that_has_expired_is_refused(home: Path, away: Path, tmp_path: Path) -> None:
    certificate = signed(home, asked(away, tmp_path), tmp_path, NOW)
    assert "expired at" in refusal(lambda: accept(away, certificate, now=NOW + 2 * YEAR))


def test_leaf_is_no_intermediate(home: Path, away: Path, tmp_path: Path) -> None:
    leaf = tmp_path / "leaf.pem"
    leaf.write_text(issue(Signer.load(home, LATER), SHIPPER, lifetime=timedelta(days=1), now=LATER).chain_pem)
    assert "is not the certificate of a CA" in refusal(lambda: accept(away, leaf, now=LATER))


def test_only_certificates_are_taken_of_what_is_brought(home: Path, away: Path, tmp_path: Path) -> None:
    certificate = signed(home, asked(away, tmp_path), tmp_path)
    certificate.write_text("a note\n" + certificate.read_text() + (home / "root.key").read_text())
    accept(away, certificate, now=LATER)
    assert (away / "intermediate.pem").read_text().startswith("-----BEGIN CERTIFICATE-----\n")
    assert "PRIVATE" not in (away / "intermediate.pem").read_text()


# Keys are their owner's alone


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777])
def test_key_that_others_can_get_at_is_refused(home: Path, mode: int) -> None:
    (home / "intermediate.key").chmod(mode)
    assert refusal(lambda: Signer.load(home, NOW)) == (
        f"others can read the key in {home / 'intermediate.key'}: its mode is {mode:04o}; correct that (chown root, "
        "chmod 600), and make another key if somebody may have read it"
    )


@needs_root
def test_key_of_another_user_is_refused(home: Path) -> None:
    os.chown(home / "intermediate.key", 65534, 0)
    assert "it belongs to the user with the number 65534" in refusal(lambda: Signer.load(home, NOW))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_key_of_its_owner_is_taken(home: Path, mode: int) -> None:
    (home / "intermediate.key").chmod(mode)
    assert Signer.load(home, NOW).trust_domain == "example.org"
