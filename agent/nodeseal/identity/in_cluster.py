"""The issuer in a cluster of Kubernetes: the certificate service beside which the agent is a pod.

Theory of operation. The node proves itself with every request, by the token that the kubelet projects into the agent's
pod. So it has no certificate of its own, and no key in a file. Where the service is, and by which trust anchors it is
known, the API server says: the address of its Service, and a ConfigMap. Both are asked for when the agent starts, and
whenever the service does not answer as it should: it may have gone over to another CA. From then on the service says
itself what the anchors are. No name is resolved: DNS may be a pod that waits for its certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from nodeseal import __version__
from nodeseal.clock import utc_now
from nodeseal.contracts.authority import BUNDLE_KEY, CERTIFICATES, ServiceWord
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.issuer import Fault, Flaw, IssuerError, Svid
from nodeseal.identity.service_client import ClusterClient, ServiceAway, ServiceRefused
from nodeseal.identity.service_issuer import ServiceIssuer, asked_for
from nodeseal.identity.signing import Signed
from nodeseal.identity.trust import TrustBundle
from nodeseal.kubernetes.access import Access, AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.kept import CONFIG_MAPS
from nodeseal.kubernetes.objects import SERVICES, Service
from nodeseal.local.issuers import ClusterCa
from nodeseal.mesh.spiffe import SpiffeId

log = logging.getLogger("nodeseal.agent")

CHECK_S = 5.0
"""So often it is looked at what is due."""
BEGIN_S = 300.0
"""So long the service is waited for when nothing is known of its trust anchors: both may be installed together."""

_AGAIN_S = 1.0
_TOLD_S = 15.0
_TRIES = 4
_UNPROVEN = (
    ServiceWord.POD_TOKEN_UNTAKEN,
    ServiceWord.POD_TOKEN_OF_ANOTHER_ACCOUNT,
    ServiceWord.POD_TOKEN_UNBOUND,
    ServiceWord.POD_GONE,
    ServiceWord.TOKEN_OF_ANOTHER_NODE,
    ServiceWord.NODE_UNPROVEN,
)


class ClusterIssuer(ServiceIssuer):
    """One node's."""

    _client: ClusterClient

    def __init__(
        self,
        ca: ClusterCa,
        node: str,
        run_dir: Path,
        kind: KeyKind = KeyKind.P256,
        *,
        access: Access | None = None,
        now: Callable[[], datetime] = utc_now,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`access`: to the API server; None: as a pod has it. Raises IssuerError where there is none."""
        super().__init__(
            ClusterClient(ca.trust_domain, ca.token_file), ca.trust_domain, run_dir, kind, now=now, rand=rand
        )
        self._ca = ca
        self._node = node
        self._unproven: str | None = None
        self._finding = asyncio.Lock()
        self._found = 0
        """How often it was found."""
        try:
            self._api = Api(access or Access.in_cluster(os.environ), f"nodeseal-agent/{__version__}")
        except AccessError as error:
            raise IssuerError(f"{self.describe()} cannot be found: {error}") from None

    def describe(self) -> str:
        """See Issuer.describe."""
        return f"the certificate service {self._ca.namespace}/{self._ca.service}"

    async def begin(self) -> None:
        """See Issuer.begin."""
        self._recall()
        clock = asyncio.get_running_loop().time
        deadline, told = clock() + BEGIN_S, clock() + _AGAIN_S
        while True:
            try:
                await self._find()
                return
            except IssuerError as error:
                if self.bundle.fingerprints:
                    log.warning("%s; certificates go on as long as they are valid", error)
                    return
                if clock() >= deadline:
                    raise IssuerError(f"{error}; install the service, or correct the setting 'ca'") from None
                if clock() >= told:
                    log.warning("%s; it is waited for", error)
                    told = clock() + _TOLD_S
                await asyncio.sleep(_AGAIN_S)

    async def sign(self, identity: SpiffeId, request: str, present: Svid | None) -> Signed:
        """See SigningIssuer.sign."""
        message = asked_for(identity, request, present, self._node)
        for last in (False,) * (_TRIES - 1) + (True,):
            found = self._found
            try:
                answer = await self._client.ask(CERTIFICATES, message)
            except ServiceAway as error:
                away = self._is_away(error)
                if last:
                    raise away from None
                await self._find_again(found)
                await asyncio.sleep(_AGAIN_S * self._random())
                continue
            except ServiceRefused as error:
                self._away = None
                if error.word in _UNPROVEN:
                    self._unproven = f"{self.describe()} does not take the node {self._node} for what it is: {error}"
                await self._bear(error, identity, last=last)
                continue
            assert answer is not None  # nothing was asked by a tag
            self._away = self._unproven = None
            return await self._signed(answer)
        raise AssertionError("the last try has an end")

    async def changes(self) -> AsyncIterator[TrustBundle]:
        """See Issuer.changes."""
        told: TrustBundle | None = None
        while True:
            if self.bundle != told:
                told = self.bundle
                yield self.bundle
            await asyncio.sleep(CHECK_S)
            await self._keep_up()

    async def condition(self) -> tuple[Fault, ...]:
        """See Issuer.condition."""
        found = []
        if self._unproven is not None:
            remedy = "correct the agent's service account, the audience of its token or its node's name"
            found.append(Fault(Flaw.UNPROVEN, self._unproven, remedy))
        found += self._faults()
        return tuple(found)

    async def close(self) -> None:
        """See Issuer.close."""
        await super().close()
        await self._api.close()

    async def _keep_up(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._refresh_at:
            return
        self._refresh_at = now + self._refresh.next()
        found = self._found
        try:
            await self._fetch()
        except IssuerError as error:
            log.warning("%s", error)
            await self._find_again(found)

    async def _find_again(self, found: int) -> None:
        """Unless somebody has done so since it was found so often."""
        async with self._finding:
            if found != self._found:
                return
            try:
                await self._find()
            except IssuerError as error:
                self._found += 1
                log.warning("%s", error)

    async def _find(self) -> None:
        """Asks the API server where the service is, and by what it is known. Raises IssuerError."""
        namespace = self._ca.namespace
        try:
            service = await self._api.get(SERVICES, (namespace, self._ca.service))
            bundle = await self._api.get(CONFIG_MAPS, (namespace, self._ca.bundle))
        except (AwayError, RefusedError, AccessError, ValueError) as error:
            raise IssuerError(f"{self.describe()} cannot be found: {error}") from None
        urls = _urls(service) if service is not None else []
        if not urls:
            what = "has no address" if service is not None else "is not there"
            raise IssuerError(f"the Service {namespace}/{self._ca.service} {what}")
        anchors = (bundle.data or {}).get(BUNDLE_KEY, "") if bundle is not None else ""
        if not anchors:
            raise IssuerError(f"the ConfigMap {namespace}/{self._ca.bundle} has no trust anchors yet")
        try:
            await self._client.meet(urls, anchors)
        except (ssl.SSLError, ValueError):
            raise IssuerError(
                f"the ConfigMap {namespace}/{self._ca.bundle} has trust anchors that cannot be read"
            ) from None
        self._take(anchors)
        self._tag = ""  # these may be older than what the service has said
        self._found += 1


def _urls(service: Service) -> list[str]:
    """ "https://address:port" of each of its addresses, by its first port; none of one that has no address."""
    ports = service.spec.ports or []
    found = []
    for text in service.spec.cluster_ips or ():
        with contextlib.suppress(ValueError):  # "None": it has none
            address = ip_address(text)
            found.append(f"https://[{address}]:" if address.version == 6 else f"https://{address}:")
    return [f"{one}{ports[0].port}" for one in found] if ports else []
