"""The next intermediate of a CA: made where the root's key is, or asked for there and brought back.

Whatever comes out has a key of its own. Certificates that the former intermediate signed carry it with them, so that
they go on until they expire; nothing has to know of two intermediates at a time.
"""

import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nodeseal.authority import store
from nodeseal.authority.certificates import (
    authority_key_identifier,
    belong_together,
    ca_builder,
    check_ca,
    check_chain,
    check_valid,
    parse,
    pem,
    stated_trust_domain,
    trust_domain,
)
from nodeseal.authority.csr import requested_key
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.refused import Refused
from nodeseal.authority.signing_key import CaKey, FileKey, LeafKey, SigningKey, known_kind
from nodeseal.authority.store import INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, NEXT_KEY, ROOT_CERTIFICATE, ROOT_KEY
from nodeseal.contracts.key_kind import KeyKind

YEAR = timedelta(days=365)
INTERMEDIATE_LIFETIME = YEAR

_MAX_BROUGHT = 64 * 1024


def renew(
    directory: Path, *, now: datetime, lifetime: timedelta = INTERMEDIATE_LIFETIME, kind: KeyKind | None = None
) -> x509.Certificate:
    """Makes the next intermediate in a CA directory that has the root's key. It counts whole or not at all.

    `kind`: of its key; None: that of the present intermediate. A request that waits is void after it. Raises
    AuthorityError.
    """
    with store.locked(directory):
        if not (directory / ROOT_KEY).exists():
            raise AuthorityError(
                f"{directory} has no {ROOT_KEY}: run this where it is, or ask for a certificate with `nodeseal ca "
                f"request {directory} FILE`, have it signed there with `nodeseal ca sign`, and bring it back with "
                f"`nodeseal ca renew {directory} --certificate FILE`"
            )
        root, root_key = _signer(directory, now)
        key = FileKey.generate(kind or _kind(directory))
        domain = _domain(directory, root)
        cert = _certified(key.public_key, domain, root, root_key, now, lifetime)
        store.write(directory, NEXT_KEY, key.pem())
        _put(directory, cert.public_bytes(Encoding.PEM))
    return cert


def request(directory: Path, kind: KeyKind | None = None) -> x509.CertificateSigningRequest:
    """Puts a fresh key beside the present one, to wait for its certificate, and makes the request for it.

    The directory has root.pem at least. `kind`: of the key; None: that of the present intermediate or, where there is
    none, of the root. The last request counts, the one before it is void. Raises AuthorityError.
    """
    with store.locked(directory):
        store.read_certificates(directory / ROOT_CERTIFICATE)
        key = FileKey.generate(kind or _kind(directory))
        store.write(directory, NEXT_KEY, key.pem())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nodeseal intermediate")])
    return key.sign(x509.CertificateSigningRequestBuilder().subject_name(name))


def sign(
    directory: Path, file: Path, *, now: datetime, lifetime: timedelta = INTERMEDIATE_LIFETIME
) -> x509.Certificate:
    """An intermediate for the key of the request in `file` (PEM), by the root in a directory that has its key.

    Nothing else of the request is taken: name, trust domain and all that the certificate allows are the root's affair.
    Raises AuthorityError.
    """
    if not (directory / ROOT_KEY).exists():
        raise AuthorityError(f"{directory} has no {ROOT_KEY}: bring the request to where it is")
    root, root_key = _signer(directory, now)
    return _certified(_requested_key(file), _domain(directory, root), root, root_key, now, lifetime)


def accept(directory: Path, file: Path, *, now: datetime) -> x509.Certificate:
    """Takes the certificate in `file` (PEM; it, and what may be between it and the root) for the key that waits.

    It counts whole or not at all. Raises AuthorityError for a certificate that no agent could use, or that is for
    another key, another trust domain or another root.
    """
    path = directory / INTERMEDIATE_CERTIFICATE
    with store.locked(directory):
        roots = store.read_certificates(directory / ROOT_CERTIFICATE)
        try:
            chain = parse(_read(file))
        except ValueError:
            raise AuthorityError(
                f"{file} holds no certificate in PEM form; bring what `nodeseal ca sign` wrote"
            ) from None
        check_chain(chain, file, roots, directory / ROOT_CERTIFICATE, _utc(now))
        domain = trust_domain(chain[0], file)
        present = stated_trust_domain(store.read_certificates(path)[0]) if path.exists() else domain
        if domain != present:
            raise AuthorityError(
                f"{file} is for the trust domain {domain}, and {path} for {present}; have one signed by the "
                "CA of this trust domain"
            )
        if not any(store.is_key_of(directory / name, chain[0]) for name in (NEXT_KEY, INTERMEDIATE_KEY)):
            raise AuthorityError(
                f"no key in {directory} belongs to {file}: it is not for the last request that was made there; make "
                f"another with `nodeseal ca request {directory} FILE`"
            )
        _put(directory, "".join(map(pem, chain)).encode())
    return chain[0]


def certify(
    key: CaKey, domain: str, root: x509.Certificate, root_key: SigningKey, now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:  # fmt: skip
    """An intermediate that the root signs; it does not outlive it. `now` in whole seconds of UTC. Raises ValueError or
    OverflowError for times that cannot be."""
    # A part that differs, so that two are not taken for one another by their names.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nodeseal intermediate {os.urandom(4).hex()}")])
    return root_key.sign(
        ca_builder(domain, name, key, 0, now, min(now + lifetime, root.not_valid_after_utc))
        .issuer_name(root.subject)
        .add_extension(authority_key_identifier(root), critical=False)
    )


def _certified(
    key: CaKey, domain: str, root: x509.Certificate, root_key: SigningKey, now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:  # fmt: skip
    try:
        return certify(key, domain, root, root_key, _utc(now), lifetime)
    except (OverflowError, ValueError) as error:
        raise AuthorityError(f"cannot make an intermediate: {error}; give another lifetime") from None


def _signer(directory: Path, now: datetime) -> tuple[x509.Certificate, SigningKey]:
    """The root that may sign intermediates now, and its key."""
    path = directory / ROOT_CERTIFICATE
    key = store.read_key(directory / ROOT_KEY)
    root = next((cert for cert in store.read_certificates(path) if belong_together(key, cert)), None)
    if root is None:
        raise AuthorityError(f"{directory / ROOT_KEY} is not the key of {path}; put the two that belong together there")
    check_ca(root, path, 1)
    check_valid(root, path, _utc(now))
    return root, key


def _kind(directory: Path) -> KeyKind:
    """Of the next intermediate, unless something else is wanted: that of the present one; where there is none that can
    be read, the root's; P-256 where nodeseal makes none such."""
    for name in (INTERMEDIATE_CERTIFICATE, ROOT_CERTIFICATE):
        with contextlib.suppress(AuthorityError):
            (present, *_above) = store.read_certificates(directory / name)
            return known_kind(present.public_key()) or KeyKind.P256
    return KeyKind.P256


def _domain(directory: Path, root: x509.Certificate) -> str:
    """The trust domain that the root states; of one that states none, the present intermediate's."""
    if (stated := stated_trust_domain(root)) is not None:
        return stated
    path = directory / INTERMEDIATE_CERTIFICATE
    return trust_domain(store.read_certificates(path)[0], path)


def _put(directory: Path, data: bytes) -> None:
    """The moment in which the next intermediate counts, after its key was put beside the present one."""
    store.write(directory, INTERMEDIATE_CERTIFICATE, data)
    store.settle(directory)


def _read(file: Path) -> bytes:
    """What somebody brought."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BROUGHT + 1)
    except OSError as error:
        raise AuthorityError(f"cannot read {file}: {error.strerror or error}; name another file") from error
    if len(data) > _MAX_BROUGHT:
        raise AuthorityError(f"{file} is larger than 64 KiB; name another file")
    return data


def _requested_key(file: Path) -> LeafKey:
    """Of a request, which may come from anybody."""
    try:
        return requested_key(_read(file).decode(errors="replace"))
    except Refused as refused:
        raise AuthorityError(f"{file}: {refused} with `nodeseal ca request`") from None


def _utc(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError("a time with a time zone is expected")
    return now.astimezone(UTC).replace(microsecond=0)
