"""Makes a certificate authority in a directory: a root, and an intermediate that it signs."""

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from nodeseal.identity.errors import AuthorityError
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain

ROOT_CERTIFICATE = "root.pem"
ROOT_KEY = "root.key"
INTERMEDIATE_CERTIFICATE = "intermediate.pem"
INTERMEDIATE_KEY = "intermediate.key"

_YEAR = timedelta(days=365)
_BACKDATED = timedelta(minutes=5)


def init_authority(
    directory: Path,
    *,
    trust_domain: str,
    root_lifetime: timedelta = 10 * _YEAR,
    intermediate_lifetime: timedelta = _YEAR,
    now: datetime,
) -> None:
    """Writes root.pem, root.key, intermediate.pem and intermediate.key into a directory that is missing or empty.

    The directory gets mode 0700, the keys 0600. All or nothing: the directory appears complete. Afterwards root.key
    may be taken away to a safe place; it is needed only to sign another intermediate.

    `now` has a time zone. Raises AuthorityError.
    """
    if now.tzinfo is None:
        raise ValueError("a time with a time zone is expected")
    try:
        check_trust_domain(trust_domain)
    except SpiffeIdError as error:
        raise AuthorityError(f"cannot make a CA: {error}") from None
    if min(root_lifetime, intermediate_lifetime) <= timedelta(0):
        raise AuthorityError("cannot make a CA that is valid for no time; give lifetimes above zero")
    _check_free(directory)
    files = _make(trust_domain, root_lifetime, intermediate_lifetime, now.astimezone(UTC).replace(microsecond=0))
    _write(directory, files)


def _check_free(directory: Path) -> None:
    try:
        occupied = any(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise AuthorityError(
            f"cannot make a CA in {directory}: {error.strerror or error}; name another place"
        ) from error
    if occupied:
        raise AuthorityError(f"cannot make a CA in {directory}: it is not empty; name another place, or empty it")


def _make(trust_domain: str, root_life: timedelta, intermediate_life: timedelta, now: datetime) -> dict[str, bytes]:
    root_key, intermediate_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    try:
        root_end = now + root_life
        intermediate_end = min(now + intermediate_life, root_end)
        # A part that differs, so that the certificates of two CAs are not taken for one another by their names.
        mark = os.urandom(4).hex()
        root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nodeseal root {mark}")])
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nodeseal intermediate {mark}")])
        root = _ca(trust_domain, root_name, root_key, root_name, root_key, 1, now, root_end)
        intermediate = _ca(trust_domain, name, intermediate_key, root_name, root_key, 0, now, intermediate_end)
    except (OverflowError, ValueError) as error:
        raise AuthorityError(f"cannot make a CA: {error}; give shorter lifetimes") from None
    return {
        ROOT_CERTIFICATE: root.public_bytes(Encoding.PEM),
        ROOT_KEY: root_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        INTERMEDIATE_CERTIFICATE: intermediate.public_bytes(Encoding.PEM),
        INTERMEDIATE_KEY: intermediate_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }


def _ca(
    trust_domain: str,
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    path_length: int,
    now: datetime,
    end: datetime,
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _write(directory: Path, files: dict[str, bytes]) -> None:
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))  # mode 0700
        for name, data in files.items():
            mode = 0o600 if name.endswith(".key") else 0o644
            descriptor = os.open(temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        # rename(2) takes the place of an empty directory, and fails if it is no longer empty.
        temporary.replace(directory)
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise AuthorityError(
            f"cannot write the CA in {directory}: {error.strerror or error}; name another place"
        ) from error
