"""The TLS of the certificate service, as a server."""

from __future__ import annotations

import os
import ssl
from asyncio import sslproto
from datetime import datetime, timedelta

from nodeseal.authority.certificates import pem
from nodeseal.authority.signer import Signer
from nodeseal.authority.signing_key import FileKey, LeafKey
from nodeseal.authority.state_keys import StateKeys, service_certificate
from nodeseal.contracts.authority import service_id
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.mesh.spiffe import PathId

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h. A node whose certificate has expired is told so in words, by the
# service, instead of an alert.
_NO_CHECK_TIME = 0x200000

# asyncio gives each connection a buffer of 256 KiB before its handshake: a gigabyte for as many as there may be.
_BUFFER = 32 * 1024


def bound_buffers() -> None:
    """For all connections of this process from now on."""
    sslproto.SSLProtocol.max_size = _BUFFER


def server_context(keys: StateKeys) -> ssl.SSLContext:
    """TLS 1.3 only. A client may show a node certificate; one that `nodes.pem` has not signed ends the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(keys.service.path)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    context.load_verify_locations(cadata=pem(keys.nodes.certificate))
    # Agents keep their connections for as long as they need them: a ticket would be made for nothing.
    context.num_tickets = 0
    return context


def fresh_context(signer: Signer, lifetime: timedelta, now: datetime) -> ssl.SSLContext:
    """The same with a fresh key and certificate that the CA has signed, for a service that keeps none. Clients show
    nothing. Raises AuthorityError, OSError, ssl.SSLError."""
    context = _context()
    load_fresh(context, signer, service_id(signer.trust_domain), lifetime, now)
    return context


def waiting_context(now: datetime) -> ssl.SSLContext:
    """Until there is a CA: nobody can verify it, and probes do not. Raises OSError, ssl.SSLError."""
    context = _context()
    key = FileKey.generate(KeyKind.P256)
    _load(context, key.pem() + pem(service_certificate(key, now)).encode())
    return context


def load_fresh(context: ssl.SSLContext, signer: Signer, identity: PathId, lifetime: timedelta, now: datetime) -> None:
    """Gives the context a fresh key and an X.509-SVID for servers, neither of which is ever in a file. Raises
    AuthorityError, OSError, ssl.SSLError."""
    key = FileKey.generate(KeyKind.P256)
    public = key.public_key
    assert isinstance(public, LeafKey)
    leaf = signer.sign(identity, public, lifetime=lifetime, now=now, server_only=True)
    _load(context, key.pem() + "".join(map(pem, (leaf, *signer.chain))).encode())


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


def _load(context: ssl.SSLContext, both: bytes) -> None:
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(both)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
