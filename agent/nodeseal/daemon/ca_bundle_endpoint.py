"""The bundle endpoint in the certificate service's process: it listens, has a certificate that is fresh, and tells what
the mesh trusts now."""

from __future__ import annotations

import asyncio
import logging
import ssl
from datetime import datetime
from typing import Protocol

from nodeseal import __version__
from nodeseal.authority.bundle_server import BundleServer, endpoint_context, endpoint_id
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.live_signer import HeldSigner
from nodeseal.authority.published_bundle import PublishedBundle
from nodeseal.authority.service import Service
from nodeseal.authority.service_config import ServiceConfig
from nodeseal.authority.signer import Signer
from nodeseal.clock import utc_now
from nodeseal.contracts.authority import STANDBY, Health
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.trust_anchor import TRUST_ANCHORS

log = logging.getLogger("nodeseal.ca")

LOOK_S = 1.0
_PROBLEM = "bundle endpoint"


class Endpoint(Protocol):
    """What the service's process does with it."""

    def take(self, mesh: Mesh) -> None:
        """The mesh state is this from now on."""

    async def follow(self, service: Service) -> None:
        """From when the service issues. Never ends."""

    async def stop(self) -> None:
        """See Server.stop."""


class NoEndpoint:
    """Where the configuration has none."""

    def take(self, mesh: Mesh) -> None:
        """See Endpoint."""

    async def follow(self, service: Service) -> None:
        """See Endpoint."""

    async def stop(self) -> None:
        """See Endpoint."""


class BundleEndpoint:
    """Belongs to the event loop."""

    def __init__(self, config: ServiceConfig, signer: HeldSigner) -> None:
        """Listens. Raises AuthorityError."""
        assert config.bundle_endpoint is not None
        self._signer = signer
        self._lifetime = config.lifetimes.workload
        hint = round(config.bundle_endpoint.refresh_hint.total_seconds())
        self._bundle = PublishedBundle(config.state, signer, hint, utc_now)
        standby = Health(state=STANDBY, version=__version__, trust_domain=signer.trust_domain)
        self._shown: tuple[Signer, datetime] | None = None
        """By whom its certificate is signed, and when it is to be replaced."""
        self._server = BundleServer(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), standby, self._bundle)
        for where in config.bundle_endpoint.listen:
            try:
                place = self._server.listen(where)
            except OSError as error:
                raise AuthorityError(
                    f"cannot listen on {where}: {error.strerror or error}; correct the setting `bundle_endpoint.listen`"
                ) from None
            log.info("the bundle endpoint is at %s, with the id %s", place, endpoint_id(signer.trust_domain))

    def take(self, mesh: Mesh) -> None:
        """See Endpoint."""
        if mesh.trust_domain == self._signer.trust_domain:
            self._bundle.anchors = tuple(mesh.of(TRUST_ANCHORS).values())

    async def follow(self, service: Service) -> None:
        """See Endpoint."""
        self._server.service = service
        while True:
            why = None
            try:
                await asyncio.to_thread(self._bundle.refresh)
                await self._renew()
            except (AuthorityError, OSError, ssl.SSLError) as error:
                why = f"the bundle endpoint goes on as it is: {error}"
            except Exception as error:  # the service itself goes on
                why = f"the bundle endpoint goes on as it is: {type(error).__name__}; the service's log has more"
                if service.problems.get(_PROBLEM) != why:
                    log.exception("the bundle endpoint fails")
            why = why or self._bundle.why
            if why is None:
                service.problems.pop(_PROBLEM, None)
            elif service.problems.get(_PROBLEM) != why:
                log.warning("%s", why)
                service.problems[_PROBLEM] = why
            await asyncio.sleep(LOOK_S)

    async def stop(self) -> None:
        """See Endpoint."""
        await self._server.stop()

    async def _renew(self) -> None:
        signer, now = self._signer.signer, utc_now()
        if signer is None or (self._shown is not None and self._shown[0] is signer and now < self._shown[1]):
            return
        self._server.use(await asyncio.to_thread(endpoint_context, signer, self._lifetime, now))
        self._shown = signer, now + min(self._lifetime, signer.not_after - now) / 2


def begin(config: ServiceConfig, signer: HeldSigner) -> Endpoint:
    """Raises AuthorityError."""
    return NoEndpoint() if config.bundle_endpoint is None else BundleEndpoint(config, signer)
