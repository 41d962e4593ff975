"""Certificates for peers that are not ours: proper ones from a lab's CA, and ones that must be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal_lab.plan import NAMESPACE, TRUST_DOMAIN
from support.issued import issue as issue_svid

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
_LIFETIME = timedelta(hours=1)
_SIGNATURES = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


@dataclass(frozen=True)
class Credential:
    """A certificate chain (leaf first), its key, and the anchors that its holder trusts, in PEM."""

    chain: str
    key: str = field(repr=False)
    bundle: str

    def write(self, directory: Path) -> None:
        """As chain.pem, key.pem and bundle.pem, which is how Envoy and Python's ssl want them."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in (("chain", self.chain), ("key", self.key), ("bundle", self.bundle)):
            (directory / f"{name}.pem").write_text(text)


def identity(pod: str, trust_domain: str = TRUST_DOMAIN) -> str:
    """The SPIFFE id of a lab's pod."""
    return str(SpiffeId(trust_domain, NAMESPACE, pod))


def issue(ca: Path, pod: str, trust_domain: str = TRUST_DOMAIN) -> Credential:
    """What a node's agent would give the pod: made by nodeseal's own issuer."""
    now = datetime.now(UTC)
    signer = Signer.load(ca, now)
    svid = issue_svid(signer, SpiffeId(trust_domain, NAMESPACE, pod), lifetime=_LIFETIME, now=now)
    return Credential(svid.chain_pem, svid.key.pem(), signer.bundle_pem)


def issue_from_new_ca(directory: Path, pod: str, trust_domain: str = TRUST_DOMAIN) -> Credential:
    """From a CA that nobody knows. Its holder trusts that CA only."""
    init_authority(directory, trust_domain=trust_domain, now=datetime.now(UTC))
    return issue(directory, pod, trust_domain)


def sign(
    ca: Path,
    *,
    uris: Sequence[str] = (),
    dns: Sequence[str] = (),
    usage: Sequence[ObjectIdentifier] = (CLIENT, SERVER),
    expired: bool = False,
    ca_leaf: bool = False,
) -> Credential:
    """A leaf that nodeseal's issuer would not make, signed with the intermediate's key. `ca_leaf`: it says that it is
    a CA."""
    intermediate = x509.load_pem_x509_certificate((ca / "intermediate.pem").read_bytes())
    signer = load_pem_private_key((ca / "intermediate.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    leaf, key = _leaf(intermediate, signer, uris=uris, dns=dns, usage=usage, expired=expired, ca_leaf=ca_leaf)
    return Credential(_pem(leaf, intermediate), _key_pem(key), (ca / "root.pem").read_text())


def sign_with_leaf(ca: Path, holder: str, claimed: str) -> Credential:
    """What the pod `holder` could sign with its own proper certificate to be taken for the identity `claimed`."""
    own = issue(ca, holder)
    certificates = x509.load_pem_x509_certificates(own.chain.encode())
    signer = load_pem_private_key(own.key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    leaf, key = _leaf(certificates[0], signer, uris=[claimed])
    return Credential(_pem(leaf, *certificates), _key_pem(key), own.bundle)


def _leaf(
    issuer: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    *,
    uris: Sequence[str] = (),
    dns: Sequence[str] = (),
    usage: Sequence[ObjectIdentifier] = (CLIENT, SERVER),
    expired: bool = False,
    ca_leaf: bool = False,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Up to a second ago: the CA itself is only a few seconds old, and was valid five minutes before it was made.
    end = datetime.now(UTC) + (timedelta(seconds=-1) if expired else _LIFETIME)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in dns]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(end, datetime.now(UTC)) - timedelta(minutes=1))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca_leaf, path_length=None), critical=True)
        .add_extension(_SIGNATURES, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return certificate, key


def _pem(*certificates: x509.Certificate) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
