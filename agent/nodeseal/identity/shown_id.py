"""Sessions with a server that is known by its SPIFFE id."""

from __future__ import annotations

import ssl

from cryptography import x509

from nodeseal.authority.rules import UNREADABLE, leaf_fault
from nodeseal.https import one_line
from nodeseal.identity.presented import uris_of


def shows(spiffe_id: str) -> type[ssl.SSLObject]:
    """Sessions whose handshake fails unless the server shows an X.509-SVID with this id, for a context that verifies
    its path."""

    class Shows(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            if (fault := _fault(self.getpeercert(binary_form=True) or b"", spiffe_id)) is not None:
                raise ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, f"the server's certificate {fault}")

    return Shows


def _fault(der: bytes, spiffe_id: str) -> str | None:
    """OpenSSL has found its path good, for a server."""
    try:
        cert = x509.load_der_x509_certificate(der)
        if (fault := leaf_fault(cert)) is not None:
            return fault
        uris = uris_of(cert)
    except UNREADABLE:
        return "cannot be read"
    if uris != [spiffe_id]:
        return f"is for {one_line(', '.join(uris)) or 'no SPIFFE id'}, not for {spiffe_id}"
    return None
