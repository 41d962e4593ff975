"""The certificate service's own keys, in its state directory: made once, long-lived, each with its certificate in one
file of mode 0600.

`service.pem` is what agents know the service by: its key signs TLS handshakes and nothing else. `nodes.pem` signs node
certificates. Neither has to do with the mesh's trust anchors: no workload takes a node for a peer, and a node can prove
itself whatever becomes of the anchors. Both are valid for as long as certificates can say (RFC 5280, 4.1.2.5): their
keys are what counts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
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
        """What agents know the service by: SHA-256 over its SubjectPublicKeyInfo, in hexadecimal."""
        return key_fingerprint(self.service.certificate.public_key())

    @classmethod
    def load(cls, state: Path, trust_domain: str, now: datetime) -> Self:
        """Makes what is not there. Raises AuthorityError."""
        now = now.astimezone(UTC).replace(microsecond=0)
        return cls(
            _made_once(state / SERVICE, lambda key: _service_certificate(key, now)),
            _made_once(state / NODES, lambda key: _nodes_certificate(key, trust_domain, now)),
        )


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


def _service_certificate(key: FileKey, now: datetime) -> x509.Certificate:
    name = _name("nodeseal certificate service")
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
