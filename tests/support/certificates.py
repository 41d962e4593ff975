"""Certificates and revocation lists that others made: nodeseal has no part in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def self_signed(directory: Path, name: str = "application") -> tuple[Path, Path]:
    """(certificate, private key), both PEM files in `directory`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / f"{name}.pem", directory / f"{name}.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


PARTNER = x509.Name(
    [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Partner"), x509.NameAttribute(NameOID.COMMON_NAME, "Issuer")]
)


def make_crl(
    *serials: int,
    name: x509.Name = PARTNER,
    extension: x509.ExtensionType | None = None,
    now: datetime | None = None,
) -> bytes:
    """A revocation list of an issuer with these serial numbers (DER), valid for a week."""
    now = now or datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(now).next_update(now + timedelta(7))
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)
