"""The SPIFFE bundle endpoint of `nodeseal ca serve`, profile https_spiffe
(https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Federation.md, section 5.2.2): for whoever asks, without
any proof, at addresses of its own.

Its certificate is an X.509-SVID of the CA, for servers only, and its key is never in a file. The id has another path
than those of workloads, so that no peer in the mesh takes it for one.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta

from aiohttp import web

from nodeseal.authority.published_bundle import PublishedBundle
from nodeseal.authority.refused import Refused
from nodeseal.authority.server import STANDBY_S, Server
from nodeseal.authority.signer import Signer
from nodeseal.authority.tls import load_fresh
from nodeseal.contracts.authority import Health, ServiceWord
from nodeseal.mesh.spiffe import PathId

CONNECTIONS = 512
"""At once."""

PATH = "/"


def endpoint_id(trust_domain: str) -> PathId:
    """The id that the endpoint shows."""
    return PathId(trust_domain, "/nodeseal/bundle-endpoint")


class BundleServer(Server):
    """Has one operation. Stands by as the service does: it does not know the mesh state then."""

    def __init__(self, context: ssl.SSLContext, standby: Health, bundle: PublishedBundle) -> None:
        super().__init__(context, standby, CONNECTIONS)
        self._published = bundle
        self._calls = {("GET", PATH): self._spiffe_bundle}

    async def _spiffe_bundle(self, _request: web.BaseRequest) -> web.Response:
        self._active()
        if self._published.document is None:
            raise Refused(ServiceWord.MESH_STATE_UNKNOWN, "the service does not know its bundle yet", STANDBY_S)
        headers = {"Server": "nodeseal", "Cache-Control": "no-cache"}
        return web.Response(body=self._published.document, content_type="application/json", headers=headers)


def endpoint_context(signer: Signer, lifetime: timedelta, now: datetime) -> ssl.SSLContext:
    """TLS 1.2 or 1.3, with a fresh key and certificate. Raises AuthorityError, OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Mozilla's intermediate compatibility, which section 5 asks for.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.num_tickets = 0
    load_fresh(context, signer, endpoint_id(signer.trust_domain), lifetime, now)
    return context
