"""Roots, as tests need many: their certificates in PEM form, by way of the CA that `nodeseal ca init` makes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from nodeseal.authority.anchors import read_anchors
from nodeseal.authority.creation import init_authority
from nodeseal.authority.renewal import YEAR
from nodeseal.mesh.trust_anchor import TrustAnchor

DOMAIN = "example.org"


def make_ca(
    directory: Path,
    *,
    trust_domain: str = DOMAIN,
    ago: timedelta = timedelta(),
    root_lifetime: timedelta = 10 * YEAR,
    intermediate_lifetime: timedelta = YEAR,
) -> Path:
    """A CA directory, made so long ago."""
    init_authority(
        directory,
        trust_domain=trust_domain,
        root_lifetime=root_lifetime,
        intermediate_lifetime=intermediate_lifetime,
        now=datetime.now(UTC) - ago,
    )
    return directory


def root_of(ca: Path) -> TrustAnchor:
    """The root of a CA directory."""
    (anchor,) = read_anchors(ca / "root.pem")
    return anchor


def renewed_root(
    ca: Path,
    *extensions: tuple[x509.ExtensionType, bool],
    begins: timedelta = timedelta(),
    lifetime: timedelta = 20 * YEAR,
) -> TrustAnchor:
    """Another certificate of the root of a CA directory: the same name and key, for another time, `extensions` (value,
    critical) beside those that it has."""
    key = load_pem_private_key((ca / "root.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    root = x509.load_pem_x509_certificate((ca / "root.pem").read_bytes())
    begin = root.not_valid_before_utc + begins
    builder = x509.CertificateBuilder(root.subject, root.subject, root.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(begin + lifetime)
    for one in root.extensions:
        builder = builder.add_extension(one.value, one.critical)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    made = builder.sign(key, hashes.SHA256())
    return TrustAnchor.read(made.public_bytes(Encoding.PEM).decode())
