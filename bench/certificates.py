"""Certificates for the peers: what nodeseal's own issuer gives a workload, and a DNS name in addition.

haproxy and nginx cannot check a URI SAN of the other side; they get a DNS name to check, so that each peer checks an
identity. Depth of the chain, kind of key and signature are the same for every peer.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.identity import embedded
from nodeseal.identity.issuer import Svid
from nodeseal.identity.key import PrivateKey
from nodeseal.identity.presented import svid_of
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import Identity, SpiffeId
from nodeseal_lab.plan import NAMESPACE, TRUST_DOMAIN

_LIFETIME = timedelta(days=1)


def identity(pod: str) -> str:
    """The SPIFFE id of a pod."""
    return str(SpiffeId(TRUST_DOMAIN, NAMESPACE, pod))


def dns_name(pod: str) -> str:
    """The name that haproxy and nginx check."""
    return f"{pod}.{NAMESPACE}.bench"


def make_authority(directory: Path) -> Path:
    """A new CA directory, the one that nodeseal's agents and `issue` use."""
    init_authority(directory, trust_domain=TRUST_DOMAIN, now=datetime.now(UTC))
    return directory


def issue_svid(signer: Signer, identity: Identity) -> Svid:
    """A certificate for an hour, as an agent gives it to a core, for a workload of the mesh's own."""
    assert isinstance(identity, SpiffeId)
    key, now = PrivateKey.generate(), datetime.now(UTC)
    signed = embedded.sign(signer, identity, key.request(str(identity)).decode(), lifetime=timedelta(hours=1), now=now)
    bundle = TrustBundle.read(signer.trust_domain, signer.bundle_pem)
    return svid_of(identity, signed.chain_pem, key, bundle, now=now, issued=signed.issued)


def issue(authority: Path, pod: str, directory: Path) -> None:
    """Writes chain.pem (leaf and intermediate), key.pem, both together as both.pem, and bundle.pem (the root)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID

    intermediate = x509.load_pem_x509_certificate((authority / "intermediate.pem").read_bytes())
    signer = load_pem_private_key((authority / "intermediate.key").read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{authority}/intermediate.key: not an EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    names = [x509.UniformResourceIdentifier(identity(pod)), x509.DNSName(dns_name(pod))]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(intermediate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    chain = "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in (leaf, intermediate))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / "chain.pem").write_text(chain)
    (directory / "key.pem").write_text(secret)
    (directory / "both.pem").write_text(chain + secret)
    (directory / "bundle.pem").write_text((authority / "root.pem").read_text())
