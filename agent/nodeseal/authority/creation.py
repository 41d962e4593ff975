"""Makes a certificate authority in a directory: a root, and an intermediate that it signs."""

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nodeseal.authority import store
from nodeseal.authority.certificates import ca_builder
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.renewal import INTERMEDIATE_LIFETIME, YEAR, certify
from nodeseal.authority.signing_key import FileKey, SigningKey
from nodeseal.authority.store import INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, ROOT_CERTIFICATE, ROOT_KEY
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain

_ROOT_LIFETIME = 10 * YEAR


def init_authority(
    directory: Path,
    *,
    trust_domain: str,
    root_lifetime: timedelta = _ROOT_LIFETIME,
    intermediate_lifetime: timedelta = INTERMEDIATE_LIFETIME,
    kind: KeyKind = KeyKind.P256,
    now: datetime,
) -> None:
    """Writes root.pem, root.key, intermediate.pem and intermediate.key into a directory that is missing or empty.

    The directory gets mode 0700, the keys 0600. All or nothing: the directory appears complete. Afterwards root.key
    may be taken away to a safe place; it is needed only to sign another intermediate.

    `kind`: of both keys; `now` has a time zone. Raises AuthorityError.
    """
    _check_wishes(trust_domain, root_lifetime, intermediate_lifetime, now)
    _check_free(directory)
    _write(directory, _make(trust_domain, root_lifetime, intermediate_lifetime, kind, _utc(now)))


def make_authority(trust_domain: str, *, now: datetime) -> dict[str, bytes]:
    """The same files with the usual lifetimes, by their names, for whoever keeps them elsewhere. Raises
    AuthorityError."""
    _check_wishes(trust_domain, _ROOT_LIFETIME, INTERMEDIATE_LIFETIME, now)
    return _make(trust_domain, _ROOT_LIFETIME, INTERMEDIATE_LIFETIME, KeyKind.P256, _utc(now))


def make_intermediate(
    trust_domain: str, root: x509.Certificate, root_key: SigningKey, *, now: datetime
) -> dict[str, bytes]:
    """The files of another intermediate of that root."""
    key = FileKey.generate(KeyKind.P256)
    certificate = certify(key.public_key, trust_domain, root, root_key, _utc(now), INTERMEDIATE_LIFETIME)
    return {INTERMEDIATE_CERTIFICATE: certificate.public_bytes(Encoding.PEM), INTERMEDIATE_KEY: key.pem()}


def _check_wishes(trust_domain: str, root_lifetime: timedelta, intermediate_lifetime: timedelta, now: datetime) -> None:
    if now.tzinfo is None:
        raise ValueError("a time with a time zone is expected")
    try:
        check_trust_domain(trust_domain)
    except SpiffeIdError as error:
        raise AuthorityError(f"cannot make a CA: {error}") from None
    if min(root_lifetime, intermediate_lifetime) <= timedelta(0):
        raise AuthorityError("cannot make a CA that is valid for no time; give lifetimes above zero")


def _utc(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(microsecond=0)


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


def _make(
    trust_domain: str, root_life: timedelta, intermediate_life: timedelta, kind: KeyKind, now: datetime
) -> dict[str, bytes]:
    root_key, intermediate_key = FileKey.generate(kind), FileKey.generate(kind)
    public = root_key.public_key
    try:
        # A part that differs, so that the certificates of two CAs are not taken for one another by their names.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nodeseal root {os.urandom(4).hex()}")])
        root = root_key.sign(
            ca_builder(trust_domain, name, public, 1, now, now + root_life)
            .issuer_name(name)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        )
        intermediate = certify(intermediate_key.public_key, trust_domain, root, root_key, now, intermediate_life)
    except (OverflowError, ValueError) as error:
        raise AuthorityError(f"cannot make a CA: {error}; give shorter lifetimes") from None
    return {
        ROOT_CERTIFICATE: root.public_bytes(Encoding.PEM),
        ROOT_KEY: root_key.pem(),
        INTERMEDIATE_CERTIFICATE: intermediate.public_bytes(Encoding.PEM),
        INTERMEDIATE_KEY: intermediate_key.pem(),
    }


def _write(directory: Path, files: dict[str, bytes]) -> None:
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))  # mode 0700
        for name, data in files.items():
            store.create(temporary / name, data, 0o600 if name.endswith(".key") else 0o644)
        # rename(2) takes the place of an empty directory, and fails if it is no longer empty.
        temporary.replace(directory)
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise store.cannot_write(directory, error) from error
