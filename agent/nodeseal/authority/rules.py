"""What X509-SVID wants of certificates (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md): the same
rules as in cext/src/wire/svid.c, for the certificates of our own CA, so that no peer refuses what they sign, and for
those of servers that the agent itself talks with.

docs/identity.md has each rule with its source and its test.
"""

from typing import TypeVar

from cryptography import x509

from nodeseal.mesh.spiffe import SpiffeIdError, split

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
    return _svid_fault(cert, critical=usage.critical)


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
