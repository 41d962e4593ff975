"""The certificate service's own keys, in its state directory: made once, long-lived, each with its certificate in one
file of mode 0600.

`service.pem` is what agents know the service by: its key signs TLS handshakes and nothing else. The next one waits in
`service-next.pem` until every agent knows it, and the former one is in `service-former.pem` until it is removed.
`nodes.pem` signs node certificates. None has to do with the mesh's trust anchors: no workload takes a node for a peer,
and a node can prove itself whatever becomes of the anchors. All are valid for as long as certificates can say (RFC
5280, 4.1.2.5): their keys are what counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nodeseal.authority import store
from nodeseal.authority.certificates import (
    belong_together,
    ca_builder,
    key_fingerprint,
    pem,
)
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.signing_key import FileKey, SigningKey
from nodeseal.contracts.authority import SERVER_NAME
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.linux import directories

SERVICE = "service.pem"
SERVICE_NEXT = "service-next.pem"
SERVICE_FORMER = "service-former.pem"
NODES = "nodes.pem"

_FOR_EVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_REMEDY = "bring it back from a backup, or remove it and let every node join anew"


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key and its certificate, in `path`."""

    path: Path
    certificate: x509.Certificate
    key: SigningKey

    def __repr__(self) -> str:
        return f"OwnKey({self.path})"

    @property
    def pin(self) -> str:
        """SHA-256 over its SubjectPublicKeyInfo, in hexadecimal."""
        return key_fingerprint(self.certificate.public_key())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises AuthorityError."""
        key = store.read_key(path, remedy=_REMEDY)
        (certificate, *_more) = store.read_certificates(path, remedy=_REMEDY)
        if not belong_together(key, certificate):
            raise AuthorityError(f"the key and the certificate in {path} are not of each other; {_REMEDY}")
        return cls(path, certificate, key)


@dataclass(frozen=True, slots=True)
class StateKeys:
    """Both."""

    service: OwnKey
    nodes: OwnKey

    @property
    def pin(self) -> str:
        """What agents know the service by."""
        return self.service.pin

    @classmethod
    def load(cls, state: Path, trust_domain: str, now: datetime) -> Self:
        """Makes what is not there. Raises AuthorityError."""
        now = now.astimezone(UTC).replace(microsecond=0)
        return cls(
            _made_once(state / SERVICE, lambda key: service_certificate(key, now)),
            _made_once(state / NODES, lambda key: _nodes_certificate(key, trust_domain, now)),
        )


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """The service's key, before, now and then. None: there is none."""

    present: OwnKey
    next: OwnKey | None
    former: OwnKey | None

    @classmethod
    def read(cls, state: Path) -> Self:
        """Raises AuthorityError."""
        if not (state / SERVICE).exists():
            raise AuthorityError(f"no certificate service has its state in {state} yet; start one: nodeseal ca serve")
        return cls(OwnKey.read(state / SERVICE), _read_if_there(state / SERVICE_NEXT), _read_former(state))


def make_next(state: Path, now: datetime) -> None:
    """A key for the service that is not used yet; one that waits already stays. Raises AuthorityError."""
    now = now.astimezone(UTC).replace(microsecond=0)
    _made_once(state / SERVICE_NEXT, lambda key: service_certificate(key, now))


def switch(state: Path, *, back: bool = False) -> None:
    """The next key is the service's from now on, and the present one the former; `back`: the other way round. There is
    one at any moment. Raises AuthorityError."""
    with _alone(state):
        _switch(state, back=back)


def _switch(state: Path, *, back: bool) -> None:
    coming, going = (SERVICE_FORMER, SERVICE_NEXT) if back else (SERVICE_NEXT, SERVICE_FORMER)
    if _read_if_there(state / coming) is None or (back and _read_former(state) is None):
        raise AuthorityError(
            f"there is no former key in {state}" if back else f"there is no next key in {state}: nodeseal ca key next"
        )
    if back and (state / going).exists():
        raise AuthorityError(f"{state / going} waits already, and the present key would take its place; remove it")
    beside = state / f".{going}.switch"
    try:
        # Of one that was ended in the middle.
        beside.unlink(missing_ok=True)
        os.link(state / SERVICE, beside)
        beside.replace(state / going)
        # Where both are the same file already, rename(2) does nothing.
        beside.unlink(missing_ok=True)
        (state / coming).replace(state / SERVICE)
        directories.sync(state)
    except OSError as error:
        raise AuthorityError(f"cannot write {state}: {error.strerror or error}; correct its owner") from error


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Nobody else switches meanwhile. Raises AuthorityError."""
    try:
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AuthorityError(f"cannot use {state}: {error.strerror or error}; correct its owner") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_if_there(path: Path) -> OwnKey | None:
    return OwnKey.read(path) if path.exists() else None


def _read_former(state: Path) -> OwnKey | None:
    """None also when it is the present one: a switch was ended in the middle."""
    found, present = _read_if_there(state / SERVICE_FORMER), OwnKey.read(state / SERVICE)
    return found if found is not None and found.pin != present.pin else None


def prepare(state: Path) -> None:
    """Makes the state directory, for its owner only. Raises AuthorityError."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuthorityError(
            f"cannot make the certificate service's directory {state}: {error.strerror or error}; correct the setting "
            "`state`"
        ) from error


def _made_once(path: Path, certify: Callable[[FileKey], x509.Certificate]) -> OwnKey:
    if not path.exists():
        key = FileKey.generate(KeyKind.P256)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            store.create(beside, key.pem() + pem(certify(key)).encode(), 0o600)
            try:
                # Of two processes that begin at once one is the first, and the other takes what that has made.
                with contextlib.suppress(FileExistsError):
                    os.link(beside, path)
                directories.sync(path.parent)
            finally:
                beside.unlink()
        except OSError as error:
            raise AuthorityError(
                f"cannot write {path}: {error.strerror or error}; correct the setting `state`, or its owner"
            ) from error
    return OwnKey.read(path)


def service_certificate(key: FileKey, now: datetime) -> x509.Certificate:
    """Signed by itself."""
    # Another name for each key: OpenSSL looks for one anchor of a name, and agents may have the present and the next.
    name = _name(f"nodeseal certificate service {key_fingerprint(key.public_key)[:12]}")
    return key.sign(
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(_FOR_EVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key), critical=False)
    )


def _nodes_certificate(key: FileKey, trust_domain: str, now: datetime) -> x509.Certificate:
    name = _name("nodeseal nodes")
    return key.sign(ca_builder(trust_domain, name, key.public_key, 0, now, _FOR_EVER).issuer_name(name))


def _name(what: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, what)])
