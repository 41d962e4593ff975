"""The certificate authority in a directory, and what it issues."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from nodeseal.authority.creation import init_authority
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.signer import Signer
from nodeseal.identity.credentials import renewal_time
from nodeseal.identity.issuer import Svid
from nodeseal.mesh.spiffe import SpiffeId
from support.issued import issue

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
SHIPPER = SpiffeId("example.org", "default", "shipper")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ca") / "ca"
    init_authority(directory, trust_domain="example.org", now=NOW)
    return directory


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A certificate authority that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "ca"))


@pytest.fixture(scope="module")
def signer(original: Path) -> Signer:
    return Signer.load(original, NOW)


@pytest.fixture(scope="module")
def svid(signer: Signer) -> Svid:
    return issue(signer, SHIPPER, lifetime=DAY, now=NOW)


def certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def refusal(directory: Path, now: datetime = NOW) -> str:
    with pytest.raises(AuthorityError) as caught:
        Signer.load(directory, now)
    text = str(caught.value)
    assert "\n" not in text
    assert "PRIVATE" not in text
    return text


# Making one


def test_the_directory_and_the_keys_are_for_their_owner_only(original: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in original.iterdir()}
    assert modes == {"root.pem": 0o644, "root.key": 0o600, "intermediate.pem": 0o644, "intermediate.key": 0o600}
    assert original.stat().st_mode & 0o777 == 0o700


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    init_authority(tmp_path, trust_domain="example.org", now=NOW)
    assert Signer.load(tmp_path, NOW).trust_domain == "example.org"


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(AuthorityError, match="it is not empty"):
        init_authority(tmp_path, trust_domain="example.org", now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AuthorityError, match="No space left on device"):
        init_authority(tmp_path / "ca", trust_domain="example.org", now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_directorys_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("x")
    with pytest.raises(AuthorityError, match="Not a directory; name another place"):
        init_authority(tmp_path / "ca", trust_domain="example.org", now=NOW)


@pytest.mark.parametrize("trust_domain", ["", "Example.org", "a/b", "d" * 256])
def test_a_bad_trust_domain_is_refused(tmp_path: Path, trust_domain: str) -> None:
    with pytest.raises(AuthorityError, match="trust domain"):
        init_authority(tmp_path / "ca", trust_domain=trust_domain, now=NOW)


def test_the_longest_trust_domain_is_taken(tmp_path: Path) -> None:
    init_authority(tmp_path / "ca", trust_domain="d" * 255, now=NOW)
    assert Signer.load(tmp_path / "ca", NOW).trust_domain == "d" * 255


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(days=-1), timedelta(days=10_000_000)])
def test_an_impossible_lifetime_is_refused(tmp_path: Path, lifetime: timedelta) -> None:
    with pytest.raises(AuthorityError, match="lifetimes"):
        init_authority(tmp_path / "ca", trust_domain="example.org", root_lifetime=lifetime, now=NOW)
    assert not (tmp_path / "ca").exists()


def test_signing_certificates_are_as_x509_svid_wants_them(original: Path) -> None:
    for name, length in (("root", 1), ("intermediate", 0)):
        (cert,) = certificates((original / f"{name}.pem").read_text())
        constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, length)
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert not usage.value.digital_signature
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]


def test_an_intermediate_does_not_outlive_its_root(tmp_path: Path) -> None:
    init_authority(tmp_path / "ca", trust_domain="example.org", root_lifetime=DAY, now=NOW)
    (cert,) = certificates((tmp_path / "ca" / "intermediate.pem").read_text())
    assert cert.not_valid_after_utc == NOW + DAY


# Loading one


def test_the_roots_key_is_not_needed(directory: Path) -> None:
    (directory / "root.key").unlink()
    assert Signer.load(directory, NOW).trust_domain == "example.org"


def test_further_trust_anchors_are_in_the_bundle(directory: Path, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", trust_domain="example.org", now=NOW)
    both = (tmp_path / "other" / "root.pem").read_text() + (directory / "root.pem").read_text()
    (directory / "root.pem").write_text(both)
    assert certificates(Signer.load(directory, NOW).bundle_pem) == certificates(both)


@pytest.mark.parametrize("name", ["root.pem", "intermediate.pem", "intermediate.key"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert refusal(directory).startswith(f"cannot read the CA's file {directory / name}: No such file or directory; ")


@pytest.mark.parametrize("name", ["root.pem", "intermediate.pem", "intermediate.key"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_spoiled_file_is_named(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    assert refusal(directory).startswith(f"{directory / name} does not hold a ")


def test_a_directory_in_a_files_place_is_named(directory: Path) -> None:
    (directory / "root.pem").unlink()
    (directory / "root.pem").mkdir()
    assert "root.pem: Is a directory" in refusal(directory)


def test_an_endless_file_is_refused(directory: Path) -> None:
    (directory / "root.pem").unlink()
    (directory / "root.pem").symlink_to("/dev/zero")
    assert "is larger than 1 MiB" in refusal(directory)


def test_an_expired_intermediate_is_refused(directory: Path) -> None:
    text = refusal(directory, NOW + timedelta(days=365))
    assert text == (
        f"{directory}/intermediate.pem expired at 2027-03-01 12:00:00Z; put a new certificate and its key there"
    )


def test_an_intermediate_of_the_future_is_refused(directory: Path) -> None:
    assert "is not valid before 2026-03-01 11:55:00Z; correct this machine's clock" in refusal(directory, NOW - DAY)


def test_a_key_of_another_certificate_is_refused(directory: Path) -> None:
    shutil.copy(directory / "root.key", directory / "intermediate.key")
    assert "intermediate.key is not the key of" in refusal(directory)


def test_a_root_that_did_not_sign_is_refused(directory: Path, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", trust_domain="example.org", now=NOW)
    shutil.copy(tmp_path / "other" / "root.pem", directory / "root.pem")
    assert "intermediate.pem is not signed by" in refusal(directory)


def test_a_leaf_is_no_intermediate(directory: Path, svid: Svid) -> None:
    (directory / "intermediate.pem").write_text(svid.chain_pem)
    (directory / "intermediate.key").write_text(svid.key.pem())
    assert "is not the certificate of a CA that may sign others" in refusal(directory)


def remake(
    directory: Path,
    name: str,
    *changed: tuple[x509.ExtensionType, bool],
    without: type | None = None,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None = None,
) -> None:
    """Signs a signing certificate anew, with extensions in other forms (value, critical) or without one, or for
    another key."""
    signer = serialization.load_pem_private_key((directory / "root.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    (old,) = certificates((directory / name).read_text())
    builder = x509.CertificateBuilder(old.issuer, old.subject, key or old.public_key(), old.serial_number)
    builder = builder.not_valid_before(old.not_valid_before_utc).not_valid_after(old.not_valid_after_utc)
    for value, critical in changed:
        builder = builder.add_extension(value, critical)
    gone = tuple(type(value) for value, _critical in changed) + ((without,) if without is not None else ())
    for extension in old.extensions:
        if not isinstance(extension.value, gone):
            builder = builder.add_extension(extension.value, extension.critical)
    cert = builder.sign(signer, hashes.SHA256())
    (directory / name).write_bytes(cert.public_bytes(serialization.Encoding.PEM))


def names(*uris: str) -> tuple[x509.ExtensionType, bool]:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), False


def usage(*, signs: bool, critical: bool = True) -> tuple[x509.ExtensionType, bool]:
    value = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return value, critical


def purposes(*oids: x509.ObjectIdentifier) -> tuple[x509.ExtensionType, bool]:
    return x509.ExtendedKeyUsage(oids), False


def test_an_intermediate_without_a_trust_domain_is_refused(directory: Path) -> None:
    remake(directory, "intermediate.pem", without=x509.SubjectAlternativeName)
    assert "does not say its trust domain" in refusal(directory)


@pytest.mark.parametrize("name", ["intermediate.pem", "root.pem"])
@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ((x509.BasicConstraints(ca=False, path_length=None), True), "is no CA certificate (basic constraints)"),
        (usage(signs=False), "may not sign certificates (key usage keyCertSign)"),
        (usage(signs=True, critical=False), "has a SPIFFE id and a key usage that is not critical"),
        (names("spiffe://example.org/ca"), "has a SPIFFE id with a path"),
        (names("spiffe://example.org", "spiffe://example.org"), "has more than one URI"),
        (names("https://example.org/", "spiffe://example.org"), "has more than one URI"),
        (names("spiffe://Example.org"), "has a malformed SPIFFE id ("),
        (purposes(ExtendedKeyUsageOID.SERVER_AUTH), "is not for clients and servers (extended key usage)"),
        (purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE), "is not for clients and servers (extended key usage)"),
        (
            (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\5\0"), True),
            "has an unknown critical extension (1.2.3.4.5)",
        ),
    ],
)
def test_signing_certificates_that_peers_would_refuse_are_refused(
    directory: Path, name: str, changed: tuple[x509.ExtensionType, bool], fault: str
) -> None:
    remake(directory, name, changed)
    assert f"{name} is not the certificate of a CA that may sign others: it {fault}" in refusal(directory)


@pytest.mark.parametrize("name", ["intermediate.pem", "root.pem"])
@pytest.mark.parametrize(
    ("without", "fault"),
    [(x509.BasicConstraints, "is no CA certificate (basic constraints)"), (x509.KeyUsage, "has no key usage")],
)
def test_signing_certificates_without_an_extension_that_peers_want_are_refused(
    directory: Path, name: str, without: type, fault: str
) -> None:
    remake(directory, name, without=without)
    assert f"{name} is not the certificate of a CA that may sign others: it {fault}" in refusal(directory)


@pytest.mark.parametrize("name", ["intermediate.pem", "root.pem"])
def test_signing_certificates_may_be_for_both_roles(directory: Path, name: str) -> None:
    remake(directory, name, purposes(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH))
    assert Signer.load(directory, NOW).trust_domain == "example.org"


@pytest.mark.parametrize("name", ["intermediate.pem", "root.pem"])
@pytest.mark.parametrize(
    ("permitted", "excluded", "allowed"),
    [
        (["example.org"], None, True),
        (["other.org", "EXAMPLE.org"], None, True),
        (["other.org"], None, False),
        ([".example.org"], None, False),
        ([".org"], None, True),
        (["example.org"], ["example.org"], False),
        (None, [".org"], False),
        (None, ["other.org"], True),
    ],
)
def test_name_constraints_must_allow_the_trust_domain(
    directory: Path, name: str, permitted: list[str] | None, excluded: list[str] | None, allowed: bool
) -> None:
    trees = [None if one is None else [x509.UniformResourceIdentifier(u) for u in one] for one in (permitted, excluded)]
    remake(directory, name, (x509.NameConstraints(*trees), True))
    if allowed:
        assert Signer.load(directory, NOW).trust_domain == "example.org"
    else:
        fault = "it has name constraints that do not allow spiffe://example.org"
        assert f"{name} cannot be used for workloads: {fault}" in refusal(directory)


def test_weak_rsa_keys_are_refused(directory: Path) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505
    remake(directory, "intermediate.pem", key=weak.public_key())
    assert "may sign others: it has a weak key (RSA of 1024 bits)" in refusal(directory)


def test_intermediate_with_a_key_that_peers_do_not_take_is_refused(directory: Path) -> None:
    remake(directory, "intermediate.pem", key=ec.generate_private_key(ec.SECP224R1()).public_key())
    assert "no peer takes: it has a key on the curve secp224r1, which is not taken" in refusal(directory)


def test_intermediate_with_a_weak_signature_is_refused(directory: Path) -> None:
    """OpenSSL's command makes it: cryptography does not."""
    (directory / "extensions").write_text("basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n")
    for line in (
        "req -new -key intermediate.key -subj /CN=weak -out request",
        "x509 -req -in request -CA root.pem -CAkey root.key -sha1 -extfile extensions -out intermediate.pem",
    ):
        subprocess.run(["openssl", *line.split()], cwd=directory, check=True, capture_output=True)
    assert "no peer takes: it is signed over SHA1, which is weak" in refusal(directory)


def test_a_root_needs_no_spiffe_id(directory: Path) -> None:
    remake(directory, "root.pem", without=x509.SubjectAlternativeName)
    assert Signer.load(directory, NOW).trust_domain == "example.org"


def test_every_trust_anchor_must_be_a_signing_certificate(directory: Path, svid: Svid) -> None:
    (directory / "root.pem").write_text((directory / "root.pem").read_text() + svid.chain_pem)
    assert "root.pem is not the certificate of a CA that may sign others: it is no CA certificate" in refusal(directory)


def test_a_key_of_another_kind_is_refused(directory: Path) -> None:
    key = ed448.Ed448PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "intermediate.key").write_bytes(pem)
    assert "is neither ECDSA, nor Ed25519, nor RSA" in refusal(directory)


def test_an_encrypted_key_is_refused(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (directory / "intermediate.key").write_bytes(pem)
    assert "is encrypted" in refusal(directory)


def test_a_time_without_a_zone_is_a_mistake_of_the_caller(directory: Path) -> None:
    with pytest.raises(ValueError, match="time zone"):
        Signer.load(directory, NOW.replace(tzinfo=None))


# Issuing


def test_a_leaf_is_as_x509_svid_wants_it(svid: Svid) -> None:
    leaf = certificates(svid.chain_pem)[0]
    assert leaf.version is x509.Version.v3
    assert list(leaf.subject) == []
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier("spiffe://example.org/ns/default/sa/shipper")]
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    public = leaf.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)


def test_the_key_belongs_to_the_leaf(svid: Svid) -> None:
    key = serialization.load_pem_private_key(svid.key.pem().encode(), None)
    assert key.public_key() == certificates(svid.chain_pem)[0].public_key()


def test_the_chain_is_leaf_and_intermediate(svid: Svid, original: Path) -> None:
    _, intermediate = certificates(svid.chain_pem)
    assert [intermediate] == certificates((original / "intermediate.pem").read_text())


def test_the_chain_leads_to_the_bundle(svid: Svid, signer: Signer) -> None:
    leaf, *above = certificates(svid.chain_pem)
    verifier = PolicyBuilder().store(Store(certificates(signer.bundle_pem))).time(NOW).build_client_verifier()
    verified = verifier.verify(leaf, above)
    assert verified.subjects is not None
    assert [name.value for name in verified.subjects] == [str(SHIPPER)]


def test_the_chain_does_not_lead_to_another_bundle(svid: Svid, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", trust_domain="example.org", now=NOW)
    other = Signer.load(tmp_path / "other", NOW)
    leaf, *above = certificates(svid.chain_pem)
    verifier = PolicyBuilder().store(Store(certificates(other.bundle_pem))).time(NOW).build_client_verifier()
    with pytest.raises(VerificationError):
        verifier.verify(leaf, above)


def test_openssl_accepts_the_chain_for_both_roles(svid: Svid, signer: Signer, tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_text(signer.bundle_pem)
    (tmp_path / "chain.pem").write_text(svid.chain_pem)
    for purpose in ("sslclient", "sslserver"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime", str(int(NOW.timestamp()))]
        files = ["-CAfile", "bundle.pem", "-untrusted", "chain.pem", "chain.pem"]
        result = subprocess.run(command + files, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert result.stdout == "chain.pem: OK\n", result.stderr


def test_every_certificate_has_its_own_key_and_serial(signer: Signer) -> None:
    one, two = (issue(signer, SHIPPER, lifetime=DAY, now=NOW) for _ in range(2))
    assert one.key.public != two.key.public
    assert one.serial != two.serial


def test_the_times_are_those_of_the_leaf(svid: Svid) -> None:
    leaf = certificates(svid.chain_pem)[0]
    assert (svid.issued, svid.not_after) == (NOW, leaf.not_valid_after_utc)
    assert (leaf.not_valid_before_utc, svid.not_after) == (NOW - timedelta(seconds=60), NOW + DAY)
    assert svid.serial == f"{leaf.serial_number:x}"


def test_a_leaf_does_not_outlive_its_issuer(signer: Signer) -> None:
    svid = issue(signer, SHIPPER, lifetime=timedelta(days=1000), now=NOW)
    assert svid.not_after == signer.not_after == NOW + timedelta(days=365)


def test_a_leaf_is_not_older_than_its_issuer(signer: Signer) -> None:
    began = NOW - timedelta(minutes=5)
    svid = issue(signer, SHIPPER, lifetime=DAY, now=began)
    assert certificates(svid.chain_pem)[0].not_valid_before_utc == began


def test_an_issuer_that_has_expired_since_does_not_sign(signer: Signer) -> None:
    with pytest.raises(AuthorityError, match=r"intermediate\.pem expired at"):
        issue(signer, SHIPPER, lifetime=DAY, now=NOW + timedelta(days=365))


def test_another_trust_domain_is_refused(signer: Signer) -> None:
    with pytest.raises(AuthorityError, match=r"is for the trust domain example\.org"):
        issue(signer, SpiffeId("example.com", "default", "a"), lifetime=DAY, now=NOW)


def test_no_lifetime_is_refused(signer: Signer) -> None:
    with pytest.raises(AuthorityError, match="above zero"):
        issue(signer, SHIPPER, lifetime=timedelta(0), now=NOW)


def test_keys_do_not_show(svid: Svid, signer: Signer) -> None:
    for text in (repr(svid), str(svid), repr(signer), f"{svid!s:.9999}"):
        assert "PRIVATE" not in text
        assert "key" not in text


# Renewal


@pytest.mark.parametrize(
    ("random", "share"), [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55)], ids=["earliest", "middle", "latest"]
)
def test_renewal_is_at_half_life_give_or_take(svid: Svid, random: float, share: float) -> None:
    for before in (-1, 0, 1):
        due = svid.issued + before * DAY * 0.04
        assert renewal_time(svid, lambda: random, due) == NOW + DAY * share


@pytest.mark.parametrize("due", [None, -DAY / 4, DAY / 4], ids=["first", "late", "early"])
def test_renewal_of_what_came_out_of_turn_is_anywhere_in_the_first_half(svid: Svid, due: timedelta | None) -> None:
    """So that what was issued at once is not renewed at once."""
    when = svid.issued + due if due is not None else None
    found = [renewal_time(svid, lambda random=random: random, when) for random in (0.0, 0.5, 1.0)]
    assert found == [NOW + DAY * share for share in (0.025, 0.2625, 0.5)]


def test_a_short_life_is_renewed_within_it(signer: Signer) -> None:
    svid = issue(signer, SHIPPER, lifetime=timedelta(seconds=4), now=NOW)
    assert NOW < renewal_time(svid, lambda: 1.0) < svid.not_after


def test_the_shortest_life_does_not_make_a_busy_loop(signer: Signer) -> None:
    svid = issue(signer, SHIPPER, lifetime=timedelta(milliseconds=1), now=NOW)
    assert renewal_time(svid, lambda: 0.0) >= NOW + timedelta(seconds=1)
