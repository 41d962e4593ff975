"""What a CA's certificates must be, whoever made them, and how its own are made."""

import hashlib
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.rules import UNREADABLE, shown_fault, signing_fault
from nodeseal.authority.signing_key import CaKey, LeafKey, SigningKey
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain

REMEDY = "make one with `nodeseal ca init DIR`, or correct the agent's setting `ca`"

_BACKDATED = timedelta(minutes=5)


def parse(data: bytes) -> list[x509.Certificate]:
    """One or more certificates in PEM form. Raises ValueError for anything in them that cannot be used."""
    try:
        certs = x509.load_pem_x509_certificates(data)
        for cert in certs:
            _ = cert.extensions, cert.public_key()
    except UNREADABLE as error:
        raise ValueError(str(error)) from error
    return certs


def pem(cert: x509.Certificate) -> str:
    """In PEM form."""
    return cert.public_bytes(Encoding.PEM).decode()


def fingerprint(cert: x509.Certificate) -> str:
    """SHA-256 over the whole certificate, in hexadecimal, as `openssl x509 -fingerprint` has it between colons."""
    return cert.fingerprint(hashes.SHA256()).hex()


def key_fingerprint(key: object) -> str:
    """SHA-256 over a public key (its SubjectPublicKeyInfo), in hexadecimal."""
    return hashlib.sha256(public_bytes(key)).hexdigest()


def public_bytes(key: object) -> bytes:
    """By which two public keys can be compared; nothing for a key of a kind that is not used here."""
    if not isinstance(key, CaKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def belong_together(key: SigningKey, cert: x509.Certificate) -> bool:
    """Whether the certificate is for this key."""
    return public_bytes(key.public_key) == public_bytes(cert.public_key())


def is_signed_by(cert: x509.Certificate, above: x509.Certificate) -> bool:
    """Whether `above` is its issuer, by name and by signature."""
    try:
        cert.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def path_length(cert: x509.Certificate) -> int | None:
    """How many CAs may be below it; None: any number, or it is no CA."""
    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    except x509.ExtensionNotFound:
        return None


def check_ca(cert: x509.Certificate, path: Path, below: int) -> None:
    """Makes sure that `cert` may sign certificates, with `below` further ones between it and the leaf."""
    fault = signing_fault(cert)
    if fault is None:
        length = path_length(cert)
        if length is not None and length < below:
            fault = f"allows {length} certificates of CAs below it, and has {below}"
    if fault is not None:
        raise AuthorityError(f"{path} is not the certificate of a CA that may sign others: it {fault}; {REMEDY}")


def check_valid(cert: x509.Certificate, path: Path, now: datetime) -> None:
    """Makes sure that `cert` is valid now."""
    if now >= cert.not_valid_after_utc:
        raise AuthorityError(
            f"{path} expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}; put a new certificate and its key there"
        )
    if now < cert.not_valid_before_utc:
        raise AuthorityError(
            f"{path} is not valid before {cert.not_valid_before_utc:%Y-%m-%d %H:%M:%SZ}; correct this machine's clock"
        )


def check_chain(
    chain: list[x509.Certificate], path: Path, roots: list[x509.Certificate], root_path: Path, now: datetime
) -> x509.Certificate:
    """The root that signed `chain` (the lowest certificate first), after making sure that all of it may sign and is
    valid now. Raises AuthorityError."""
    for number, cert in enumerate(chain):
        check_ca(cert, path, number)
        if (fault := shown_fault(cert)) is not None:
            raise AuthorityError(f"{path} is a certificate that no peer takes: it {fault}; {REMEDY}")
        check_valid(cert, path, now)
    for cert, above in pairwise(chain):
        if not is_signed_by(cert, above):
            raise AuthorityError(f"{path}: a certificate is not signed by the next in the file; order them upwards")
    signer = next((root for root in roots if is_signed_by(chain[-1], root)), None)
    if signer is None:
        raise AuthorityError(f"{path} is not signed by {root_path}; put the root that signed it into that file")
    for root in roots:
        check_ca(root, root_path, 0)
    check_ca(signer, root_path, len(chain))
    check_valid(signer, root_path, now)
    return signer


def trust_domain(cert: x509.Certificate, path: Path) -> str:
    """Of the URI SAN `spiffe://<trust domain>`, which a signing certificate must have without a path."""
    domain = stated_trust_domain(cert)
    if domain is None:
        raise AuthorityError(
            f"{path} does not say its trust domain; use an intermediate whose only URI SAN is spiffe://<trust domain>"
        )
    return domain


def stated_trust_domain(cert: x509.Certificate) -> str | None:
    """See trust_domain; None when the certificate has none."""
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        return None
    domain = uris[0].removeprefix("spiffe://")
    try:
        check_trust_domain(domain)
    except SpiffeIdError:
        return None
    return domain


def authority_key_identifier(cert: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """For what is signed by `cert`."""
    try:
        own = cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = cert.public_key()
        if not isinstance(key, CaKey):
            raise AuthorityError(
                "the CA's key is neither ECDSA, nor Ed25519, nor RSA; use a CA of one of these kinds"
            ) from None
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def ca_builder(
    domain: str, name: x509.Name, key: CaKey, length: int, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    """A signing certificate as X509-SVID wants it, but for its issuer. Raises ValueError or OverflowError for times
    that cannot be."""
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    uri = x509.UniformResourceIdentifier(f"spiffe://{domain}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def leaf_builder(
    uri: str, key: LeafKey, purposes: list[x509.ObjectIdentifier], not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:  # fmt: skip
    """A certificate that can sign nothing, whose only name is a URI, but for its issuer. Its subject is empty, so that
    the name is critical (RFC 5280, 4.2.1.6). `purposes`: its extended key usages. Raises ValueError or OverflowError
    for times that cannot be."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_DIGITAL_SIGNATURE, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


_DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip
