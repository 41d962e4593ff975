"""SVIDs that a SPIFFE Workload API streams to this agent, SPIRE's for example: which is whose, its identity says.

A Workload API gives a caller its own SVIDs only: those of the registration entries that select the agent.

Theory of operation. The spiffe package reads one stream in a thread of its own, beside gRPC's threads; what comes there
is taken over into the event loop. A stream ends with the API, with the last registration entry that selects the agent,
and with an answer that cannot be read. Whatever ended it is told, and another client opens the next one: a channel of
gRPC that could not connect waits for longer and longer before it tries again. What came before goes on.

This is an exception to the rule that keys are made on the node and live in memory only: see docs/identity.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import Certificate
from spiffe import TrustDomain, WorkloadApiClient
from spiffe.workloadapi.x509_context import X509Context

from nodeseal.authority.certificates import pem
from nodeseal.authority.rules import UNREADABLE, signing_fault
from nodeseal.clock import utc_now
from nodeseal.identity.issuer import Fault, Flaw, Issuer, IssuerError, Svid
from nodeseal.identity.key import PrivateKey, PrivateKeyError
from nodeseal.identity.presented import PresentedError, svid_of
from nodeseal.identity.trust import TrustBundle
from nodeseal.local.issuers import WorkloadApiCa
from nodeseal.mesh.spiffe import SpiffeId, SpiffeIdError

log = logging.getLogger("nodeseal.agent")

BEGIN_S = 30.0
"""So long the first answer is waited for."""
AGAIN_S = 2.0
"""So long after a stream's end the next one is opened."""


class WorkloadApiIssuer(Issuer):
    """All methods belong to the event loop, but for what the stream's thread calls."""

    def __init__(self, ca: WorkloadApiCa, *, now: Callable[[], datetime] = utc_now) -> None:
        """`now`: the wall clock."""
        self.trust_domain = ca.trust_domain
        self.bundle = TrustBundle.none(ca.trust_domain)
        self.anchor = ""
        self.others = {}
        self._ca = ca
        self._now = now
        self._svids: dict[SpiffeId, Svid] = {}
        self._unusable: dict[str, str] = {}
        self._away: str | None = None
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    def describe(self) -> str:
        """See Issuer.describe."""
        return f"the Workload API {self._ca.socket}"

    async def begin(self) -> None:
        """See Issuer.begin."""
        self._following = asyncio.create_task(self._follow())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEGIN_S):
                while not self.bundle.fingerprints:
                    self._changed.clear()
                    await self._changed.wait()
        if not self.bundle.fingerprints:
            raise IssuerError(f"{self._away or f'{self.describe()} gave no trust anchors'}; correct the setting 'ca'")

    async def issue(self, identity: SpiffeId, present: Svid | None = None) -> Svid:
        """See Issuer.issue: what came last."""
        del present
        svid = self._svids.get(identity)
        if svid is None:
            why = self._unusable.get(str(identity))
            if why is not None:
                raise IssuerError(f"the SVID of {identity} that {self.describe()} gave cannot be used: it {why}")
            raise IssuerError(
                f"{self.describe()} has no SVID of {identity}; make a registration entry that selects the agent"
            )
        if svid.not_after <= self._now():
            raise IssuerError(f"the SVID of {identity} that {self.describe()} gave has expired")
        self.anchor = svid.anchor
        return svid

    def superseded(self, svid: Svid) -> bool:
        """See Issuer.superseded."""
        latest = self._svids.get(svid.identity)
        return latest is not None and latest.serial != svid.serial

    async def changes(self) -> AsyncIterator[TrustBundle]:
        """See Issuer.changes."""
        while True:
            self._changed.clear()
            yield self.bundle
            await self._changed.wait()

    async def condition(self) -> tuple[Fault, ...]:
        """See Issuer.condition."""
        found = []
        if self._away is not None:
            found.append(Fault(Flaw.AWAY, self._away, "see to the SPIFFE agent; it is asked again and again"))
        for identity, why in sorted(self._unusable.items()):
            text = f"the SVID of {identity} that {self.describe()} gave is not used: it {why}"
            found.append(Fault(Flaw.STALE, text, "correct its registration entry"))
        return tuple(found)

    async def close(self) -> None:
        """See Issuer.close."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following

    async def _follow(self) -> None:
        while True:
            try:
                await self._follow_once()
            except Exception as error:  # whatever it is: the next stream may be in order
                self._note_away(f"{self.describe()} {_meaning(error)}")
            await asyncio.sleep(AGAIN_S)

    async def _follow_once(self) -> None:
        """One stream, until it fails: raises what it failed with."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def fail(error: Exception) -> None:
            if not ended.done():
                ended.set_exception(error)

        def call(function: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(function, *arguments)

        def came(context: X509Context) -> None:
            call(self._take, *self._read(context))

        def failed(error: Exception) -> None:
            call(fail, error)

        client = await asyncio.to_thread(WorkloadApiClient, f"unix:{self._ca.socket}")
        try:
            stream = client.stream_x509_contexts(came, failed, retry_connect=False)
            try:
                await ended
            finally:
                stream.cancel()
        finally:
            client.close()

    # ---- in the stream's thread

    def _read(self, context: X509Context) -> tuple[TrustBundle, dict[SpiffeId, Svid], dict[str, str], dict[str, str]]:
        given = context.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain(self.trust_domain))
        certs = list(given.x509_authorities) if given is not None else []
        bundle = TrustBundle.none(self.trust_domain)
        if certs:
            text = "".join(map(pem, certs))
            bundle = TrustBundle.joined(self.trust_domain, [TrustBundle.read(self.trust_domain, text)])
        svids: dict[SpiffeId, Svid] = {}
        unusable: dict[str, str] = {}
        for one in context.x509_svids:
            try:
                identity = SpiffeId.parse(str(one.spiffe_id))
                secret = one.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
                chain = "".join(map(pem, one.cert_chain))
                key = PrivateKey.read(secret)
                svids[identity] = svid_of(identity, chain, key, bundle, now=self._now(), delivered=True)
            except SpiffeIdError:
                continue  # not a workload's: the agent's own, for example
            except (PresentedError, PrivateKeyError) as error:
                unusable[str(one.spiffe_id)] = str(error)
        others = {
            one.trust_domain.name: "".join(map(pem, filter(_may_sign, one.x509_authorities)))
            for one in context.x509_bundle_set.bundles
            if one.trust_domain.name != self.trust_domain
        }
        return bundle, svids, unusable, others

    # ---- in the event loop

    def _take(
        self, bundle: TrustBundle, svids: dict[SpiffeId, Svid], unusable: dict[str, str], others: dict[str, str]
    ) -> None:
        self._away = None
        self._svids, self._unusable, self.others = svids, unusable, others
        if bundle.fingerprints:
            self.bundle = bundle
            if self.anchor not in bundle.fingerprints:
                self.anchor = min(bundle.fingerprints)
        log.info("%s gave %d SVIDs", self.describe(), len(svids))
        self._changed.set()

    def _note_away(self, line: str) -> None:
        if self._away != line:
            log.warning("%s", line)
        self._away = line


def _may_sign(cert: Certificate) -> bool:
    try:
        return signing_fault(cert) is None
    except UNREADABLE:  # another domain's: it is none of those that count, and the rest of the answer does
        return False


def _meaning(error: Exception) -> str:
    """What an error of a stream says of the API: "does not answer: ..."."""
    line = " ".join(str(error).split())[:300] or type(error).__name__
    if "PERMISSION_DENIED" in line:
        return "has no SVID for this agent; make a registration entry that selects it"
    return f"does not answer: {line}"
