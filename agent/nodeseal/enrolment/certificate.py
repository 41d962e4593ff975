"""One workload's certificate, from the first time that it is asked for to each renewal, and its way to the core."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nodeseal.backoff import Backoff
from nodeseal.cores.client import CoreClient, CoreError
from nodeseal.enrolment.context import Context
from nodeseal.enrolment.credential_request import CredentialRequest
from nodeseal.enrolment.failure import text_of
from nodeseal.enrolment.installed import Installed
from nodeseal.identity.credentials import Credential
from nodeseal.identity.issuer import IssuerError
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.model import WorkloadName
from nodeseal.mesh.spiffe import Identity

log = logging.getLogger("nodeseal.agent")

LONGEST_SLEEP_S = 60.0
"""Wall-clock deadlines are looked at again, should the clock be set."""

_SHORTEST_SLEEP_S = 0.05


class Certificate:
    """`failure`: why it was not renewed; None when it was, or is not due."""

    def __init__(self, name: WorkloadName, context: Context, wake: Callable[[], None]) -> None:
        """`wake` is called when the issuer has answered."""
        self.failure: str | None = None
        self.request = CredentialRequest(context.credentials, wake)
        self._name = name
        self._context = context
        self._retry = Backoff(1.0, 300.0)
        self._not_before = 0.0

    async def give(self, key: int, identity: Identity, credential: Credential) -> TrustBundle:
        """Gives it to the core; the trust anchors that the core got before it, or with it. Raises CoreError."""
        # Right before: a core that takes the place of this one meanwhile does not know the key.
        await self._context.trust.push()
        svid, bundle = credential.svid, self._context.credentials.bundle
        await self._context.core.call(
            CoreClient.workload_credentials,
            key,
            identity,
            chain_pem=svid.chain_pem,
            private_key=svid.key,
            bundle_pem=bundle.pem,
        )
        return bundle

    async def renew(self, installed: Installed, identity: Identity) -> float:
        """Renews it when it is due; the seconds until the next renewal or try.

        Peers are told which trust anchors this node has (see the publication), so the core has to have them now."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._not_before:
            what = "trust anchors not given to the core"
            try:
                await self._context.trust.push()
                if self._is_due(installed, identity):
                    what = "certificate not renewed"
                    present = installed.credential if identity == installed.identity else None
                    credential = self.request.take(identity, present)
                    if credential is None:
                        return LONGEST_SLEEP_S  # woken when it is there
                    installed.bundle = await self.give(installed.key, identity, credential)
                    installed.credential, installed.identity = credential, identity
                    log.info("workload %s has a new certificate, serial %s", self._name, credential.svid.serial)
                self.failure = None
                self._retry.reset()
            except (IssuerError, CoreError) as error:
                if installed.incarnation != self._context.core.incarnation:
                    return _SHORTEST_SLEEP_S  # it goes to another core in a moment, with a certificate
                delay = self._retry.next()
                self._not_before = loop.time() + delay
                self.failure = f"{what}: {text_of(error)}"
                log.warning("workload %s: %s; next try in %.0f s", self._name, self.failure, delay)
        if installed.credential is None or self.failure is not None or identity != installed.identity:
            return max(_SHORTEST_SLEEP_S, self._not_before - loop.time())
        return max(_SHORTEST_SLEEP_S, (installed.credential.renew_at - self._context.now()).total_seconds())

    def retry(self) -> None:
        """What has failed is tried at the next step, and not later."""
        self._retry.reset()
        self._not_before = 0.0

    def forget(self) -> None:
        """The workload is not enrolled any more."""
        self.request.cancel()
        self.failure = None

    def _is_due(self, installed: Installed, identity: Identity) -> bool:
        """A certificate is due in time, for another identity, when it is superseded, and when its own trust anchor is
        none any more; to a core of an older version, which takes trust anchors only with one, also when these
        changed."""
        credential, bundle = installed.credential, self._context.credentials.bundle
        if credential is None or identity != installed.identity or self._context.now() >= credential.renew_at:
            return True
        if self._context.credentials.superseded(credential):
            return True
        lost = credential.svid.anchor not in bundle.fingerprints
        return installed.bundle != bundle and (lost or not self._context.trust.apart)
