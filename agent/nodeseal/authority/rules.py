"""What X509-SVID wants of certificates (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md): the same
rules as in cext/src/wire/svid.c, for the certificates of our own CA, so that no peer refuses what they sign, and for
those of servers that the agent itself talks with.

docs/identity.md has each rule with its source and its test.
"""

from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from nodeseal.authority.signing_key import CaKey
from nodeseal.mesh.spiffe import SpiffeIdError, split

UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises for a certificate, a request or a list that is well formed as far as it was read, and cannot
be used."""

_RSA_LEAST = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_EXTENSIONS_MOST = 64
_ROLES = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
_UNDERSTOOD = {
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.POLICY_CONSTRAINTS,
    ExtensionOID.NAME_CONSTRAINTS,
    ExtensionOID.POLICY_MAPPINGS,
    ExtensionOID.INHIBIT_ANY_POLICY,
}
"""Extensions that OpenSSL takes where they are critical (X509_supported_extension)."""

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


def signing_fault(cert: x509.Certificate) -> str | None:
    """Why the certificate must not sign others, in words that follow "it"; None: it may.

    Its extensions were read before: each is DER, and there once.
    """
    if cert.version is not x509.Version.v3:
        return "is not of X.509 version 3"
    constraints = _extension(cert, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        return "is no CA certificate (basic constraints)"
    usage = _extension(cert, x509.KeyUsage)
    if usage is None:
        return "has no key usage"
    if not usage.value.key_cert_sign:
        return "may not sign certificates (key usage keyCertSign)"
    return _key_fault(cert) or _extensions_fault(cert) or _svid_fault(cert, critical=usage.critical)


def leaf_fault(cert: x509.Certificate) -> str | None:
    """Why the certificate, whose path is good, is none of an X.509-SVID, but for its names; in words that follow "it".
    Raises what `cert.extensions` raises."""
    constraints, usage = _extension(cert, x509.BasicConstraints), _extension(cert, x509.KeyUsage)
    if constraints is not None and constraints.value.ca:
        return "is a CA's"
    if usage is None:
        return "has no key usage"
    if usage.value.key_cert_sign or usage.value.crl_sign:
        return "may sign certificates or revocation lists (key usage)"
    return None if usage.value.digital_signature else "is not for signatures (key usage digitalSignature)"


def shown_fault(cert: x509.Certificate) -> str | None:
    """Why no peer takes an intermediate that it is shown, in words that follow "it"; None: it is taken. A trust anchor
    is not shown, and how it signs itself does not matter."""
    if isinstance(cert.signature_hash_algorithm, hashes.SHA1 | hashes.MD5):
        return f"is signed over {cert.signature_hash_algorithm.name.upper()}, which is weak"
    key = cert.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, _CURVES):
        return f"has a key on the curve {key.curve.name}, which is not taken"
    if not isinstance(key, CaKey):
        return "has a key of a kind that is not taken"
    return None


def name_fault(cert: x509.Certificate, trust_domain: str) -> str | None:
    """Why nobody of this trust domain can be verified by a certificate, in words that follow "it"; None: they can. Of
    its name constraints those of URIs count, which are about their host (RFC 5280, 4.2.1.10)."""
    constraints = _extension(cert, x509.NameConstraints)
    if constraints is None:
        return None
    permitted, excluded = (
        [one.value for one in names or () if isinstance(one, x509.UniformResourceIdentifier)]
        for names in (constraints.value.permitted_subtrees, constraints.value.excluded_subtrees)
    )
    if any(_is_below(trust_domain, one) for one in excluded) or (
        permitted and not any(_is_below(trust_domain, one) for one in permitted)
    ):
        return f"has name constraints that do not allow spiffe://{trust_domain}"
    return None


def _is_below(host: str, constraint: str) -> bool:
    if constraint.startswith("."):
        return host.lower().endswith(constraint.lower())
    return host.lower() == constraint.lower()


def _key_fault(cert: x509.Certificate) -> str | None:
    key = cert.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_LEAST:
        return f"has a weak key (RSA of {key.key_size} bits)"
    return None


def _extensions_fault(cert: x509.Certificate) -> str | None:
    if len(cert.extensions) > _EXTENSIONS_MOST:
        return f"has more than {_EXTENSIONS_MOST} extensions"
    for one in cert.extensions:
        if one.critical and one.oid not in _UNDERSTOOD:
            return f"has an unknown critical extension ({one.oid.dotted_string})"
    usage = _extension(cert, x509.ExtendedKeyUsage)
    if usage is not None and not set(usage.value) >= _ROLES:
        return "is not for clients and servers (extended key usage)"
    return None


def _svid_fault(cert: x509.Certificate, *, critical: bool) -> str | None:
    """`critical`: its key usage is. One need not be an SVID itself."""
    names = _extension(cert, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if not any(uri.lower().startswith("spiffe:") for uri in uris):
        return None
    if not critical:
        return "has a SPIFFE id and a key usage that is not critical"
    if len(uris) != 1:
        return "has more than one URI"
    try:
        _trust_domain, path = split(uris[0])
    except SpiffeIdError as error:
        return f"has a malformed SPIFFE id ({error})"
    return "has a SPIFFE id with a path" if path else None


def _extension(cert: x509.Certificate, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
    try:
        return cert.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None
