"""The embedded issuer: signs the certificates of this node's workloads with an intermediate, all keys in memory.

Certificates follow the X509-SVID standard (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md): one URI
SAN, a leaf that can sign nothing, signing certificates with the trust domain's id. A leaf's subject is empty, so its
SAN is critical (RFC 5280, 4.2.1.6).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeseal.identity.errors import AuthorityError
from nodeseal.identity.initialise import INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, ROOT_CERTIFICATE, init_authority
from nodeseal.identity.rules import signing_fault
from nodeseal.mesh.spiffe import SpiffeId, SpiffeIdError, check_trust_domain

__all__ = ["AuthorityError", "Issuer", "Svid", "init_authority", "renewal_time"]

CLOCK_SKEW = timedelta(seconds=60)
"""How far another node's clock may be behind: a certificate is valid from so long before it is issued."""

_MIN_RENEWAL = timedelta(seconds=1)
_MAX_FILE = 1 << 20
_REMEDY = "make one with `nodeseal ca init DIR`, or correct the agent's setting `ca`"

_SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Svid:
    """A workload's certificate and key."""

    identity: SpiffeId
    chain_pem: str
    """The leaf, then the intermediates."""
    key_pem: str = field(repr=False)
    """PKCS 8, not encrypted. Exists in memory only; never write or log it."""
    not_before: datetime
    not_after: datetime
    serial: str
    """The leaf's serial number, in hexadecimal."""


class Issuer:
    """Signs leaves. Made by `load`; immutable."""

    def __init__(
        self, directory: Path, trust_domain: str, chain: list[x509.Certificate], roots: list[x509.Certificate],
        signer: x509.Certificate, key: _SigningKey,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._chain = chain
        self._key = key
        # A leaf must not outlive, nor be older than, anything that it is verified by.
        self._not_before = max(cert.not_valid_before_utc for cert in (*chain, signer))
        self._not_after = min(cert.not_valid_after_utc for cert in (*chain, signer))
        self.trust_domain = trust_domain
        """The only trust domain that identities are issued in."""
        self.bundle_pem = "".join(_pem(cert) for cert in roots)
        """The trust anchors: what peers' certificates are verified by."""

    def __repr__(self) -> str:
        return f"Issuer({self.trust_domain!r}, valid until {self._not_after:%Y-%m-%d %H:%M:%SZ})"

    @property
    def not_after(self) -> datetime:
        """When the intermediate, or what it is verified by, expires."""
        return self._not_after

    @classmethod
    def load(cls, directory: Path, now: datetime) -> Self:
        """Reads root.pem (one or more trust anchors), intermediate.pem (one, or a chain upwards) and intermediate.key.

        The root's key is not needed and not looked for. Raises AuthorityError if the issuer could not sign, or if no
        peer would accept what it signs.
        """
        now = _utc(now)
        roots = _read_certificates(directory / ROOT_CERTIFICATE)
        chain = _read_certificates(directory / INTERMEDIATE_CERTIFICATE)
        path = directory / INTERMEDIATE_CERTIFICATE
        for number, cert in enumerate(chain):
            _check_ca(cert, path, number)
            _check_valid(cert, path, now)
        for cert, above in pairwise(chain):
            if not _is_signed_by(cert, above):
                raise AuthorityError(f"{path}: a certificate is not signed by the next in the file; order them upwards")
        signer = next((root for root in roots if _is_signed_by(chain[-1], root)), None)
        if signer is None:
            raise AuthorityError(
                f"{path} is not signed by {directory / ROOT_CERTIFICATE}; put the root that signed it into that file"
            )
        for root in roots:
            _check_ca(root, directory / ROOT_CERTIFICATE, 0)
        _check_ca(signer, directory / ROOT_CERTIFICATE, len(chain))
        _check_valid(signer, directory / ROOT_CERTIFICATE, now)
        key = _read_key(directory / INTERMEDIATE_KEY)
        if _public_bytes(key.public_key()) != _public_bytes(chain[0].public_key()):
            raise AuthorityError(
                f"{directory / INTERMEDIATE_KEY} is not the key of {path}; put the two that belong together there"
            )
        return cls(directory, _trust_domain(chain[0], path), chain, roots, signer, key)

    def issue(self, identity: SpiffeId, *, lifetime: timedelta, now: datetime) -> Svid:
        """A certificate with a fresh P-256 key, valid for `lifetime` at most: never longer than the issuer's own.

        Takes a fraction of a millisecond. Raises AuthorityError for an identity of another trust domain, for a
        lifetime that is not positive, and while the issuer itself is not valid.
        """
        now = _utc(now)
        if identity.trust_domain != self.trust_domain:
            raise AuthorityError(
                f"cannot issue {identity}: the CA in {self._directory} is for the trust domain {self.trust_domain}; "
                "state that one in the mesh state, or give the agent another CA"
            )
        if lifetime <= timedelta(0):
            raise AuthorityError(f"cannot issue {identity} for {lifetime}; set a certificate lifetime above zero")
        for cert in self._chain:
            _check_valid(cert, self._directory / INTERMEDIATE_CERTIFICATE, now)
        if not self._not_before <= now < self._not_after:
            raise AuthorityError(
                f"the root in {self._directory / ROOT_CERTIFICATE} is not valid now; put a new CA there"
            )
        not_before = max(now - CLOCK_SKEW, self._not_before)
        # X.509 times are whole seconds; a lifetime of less than one must not end before it begins.
        not_after = min(max(now + lifetime, now + timedelta(seconds=1)), self._not_after)
        key = ec.generate_private_key(ec.SECP256R1())
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._chain[0].subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_DIGITAL_SIGNATURE, critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_authority_key_identifier(self._chain[0]), critical=False)
            .sign(self._key, _hash_for(self._key))
        )
        return Svid(
            identity=identity,
            chain_pem=_pem(cert) + "".join(_pem(above) for above in self._chain),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            not_before=cert.not_valid_before_utc,
            not_after=cert.not_valid_after_utc,
            serial=f"{cert.serial_number:x}",
        )


def renewal_time(svid: Svid, random: Callable[[], float]) -> datetime:
    """When to replace a certificate: at half its life, give or take a tenth, so that not all are replaced at once.

    `random` gives numbers from 0 to 1. At least a second after it was issued, however short its life.
    """
    issued = min(svid.not_before + CLOCK_SKEW, svid.not_after)
    half = (svid.not_after - issued) / 2
    return issued + max(half * (0.9 + 0.2 * random()), _MIN_RENEWAL)


_DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def _utc(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError("a time with a time zone is expected")
    return now.astimezone(UTC).replace(microsecond=0)


def _pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(Encoding.PEM).decode()


def _hash_for(key: _SigningKey) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if key.key_size == 384 else hashes.SHA256()


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise AuthorityError(f"cannot read the CA's file {path}: {error.strerror or error}; {_REMEDY}") from error
    if len(data) > _MAX_FILE:
        raise AuthorityError(f"the CA's file {path} is larger than 1 MiB; {_REMEDY}")
    return data


def _read_certificates(path: Path) -> list[x509.Certificate]:
    data = _read(path)
    try:
        certs = x509.load_pem_x509_certificates(data)
        for cert in certs:
            _ = cert.extensions, cert.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise AuthorityError(f"{path} does not hold a certificate in PEM form that can be used; {_REMEDY}") from None
    return certs


def _read_key(path: Path) -> _SigningKey:
    data = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise AuthorityError(
            f"the key in {path} is encrypted; put it there unencrypted, readable by root only"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's text is left out: nothing that was made of a key's bytes may get into a log.
        raise AuthorityError(f"{path} does not hold a private key in PEM form; {_REMEDY}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise AuthorityError(f"the key in {path} is neither ECDSA nor RSA; put a CA of one of these kinds there")
    return key


def _check_ca(cert: x509.Certificate, path: Path, below: int) -> None:
    """Makes sure that `cert` may sign certificates, with `below` further ones between it and the leaf."""
    fault = signing_fault(cert)
    if fault is None:
        length = cert.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        if length is not None and length < below:
            fault = f"allows {length} certificates of CAs below it, and has {below}"
    if fault is not None:
        raise AuthorityError(f"{path} is not the certificate of a CA that may sign others: it {fault}; {_REMEDY}")


def _check_valid(cert: x509.Certificate, path: Path, now: datetime) -> None:
    if now >= cert.not_valid_after_utc:
        raise AuthorityError(
            f"{path} expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}; put a new certificate and its key there"
        )
    if now < cert.not_valid_before_utc:
        raise AuthorityError(
            f"{path} is not valid before {cert.not_valid_before_utc:%Y-%m-%d %H:%M:%SZ}; correct this machine's clock"
        )


def _is_signed_by(cert: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _authority_key_identifier(cert: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = cert.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise AuthorityError("the CA's key is neither ECDSA nor RSA; use a CA of one of these kinds") from None
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _trust_domain(cert: x509.Certificate, path: Path) -> str:
    """Of the URI SAN `spiffe://<trust domain>`, which a signing certificate must have without a path."""
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if len(uris) == 1 and uris[0].startswith("spiffe://"):
        domain = uris[0].removeprefix("spiffe://")
        try:
            check_trust_domain(domain)
        except SpiffeIdError:
            pass
        else:
            return domain
    raise AuthorityError(
        f"{path} does not say its trust domain; use an intermediate whose only URI SAN is spiffe://<trust domain>"
    )
