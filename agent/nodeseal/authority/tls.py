"""The TLS of the certificate service, as a server."""

from __future__ import annotations

import ssl
from asyncio import sslproto

from nodeseal.authority.certificates import pem
from nodeseal.authority.state_keys import StateKeys

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
