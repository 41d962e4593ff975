"""What the issuers that ask the certificate service have in common: its trust anchors, and what it says of itself.

Whatever it says of trust anchors is kept in a file too, so that an agent can start while the service is away:
certificates that are valid concern nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from nodeseal.backoff import Backoff
from nodeseal.clock import utc_now
from nodeseal.contracts.authority import BUNDLE, FIRST, RENEWAL, Certificate, CertificateRequest
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.issuer import Fault, Flaw, IssuerError, Svid
from nodeseal.identity.service_client import ServiceAway, ServiceClient, ServiceRefused
from nodeseal.identity.signing import Signed, SigningIssuer
from nodeseal.identity.trust import TrustBundle
from nodeseal.local.run_directory import ISSUER_STATE
from nodeseal.mesh.spiffe import SpiffeId

log = logging.getLogger("nodeseal.agent")

FIRST_S, LONGEST_S = 5.0, 600.0
"""Between tries to fetch the trust anchors, and to renew what the node proves itself with."""

_PATIENCE_S = 30.0  # how long one certificate waits because the service is busy


def asked_for(identity: SpiffeId, request: str, present: Svid | None, node: str = "") -> CertificateRequest:
    """What the service is asked. `request`: PEM; `present`: the certificate before it; `node`: the one that asks, if
    what it proves itself with does not say it."""
    return CertificateRequest(
        identity=str(identity),
        csr=request,
        reason=FIRST if present is None else RENEWAL,
        expires=present.not_after if present is not None else None,
        node=node,
    )


class ServiceIssuer(SigningIssuer):
    """One node's."""

    def __init__(
        self,
        client: ServiceClient,
        trust_domain: str,
        directory: Path,
        kind: KeyKind = KeyKind.P256,
        *,
        now: Callable[[], datetime] = utc_now,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`directory`: where the anchors are kept; `now`: the wall clock; `rand` gives numbers from 0 to 1."""
        super().__init__(kind, now)
        self.trust_domain = trust_domain
        self.bundle = TrustBundle.none(trust_domain)
        self.anchor = ""
        self._client = client
        self._directory = directory
        self._random = rand
        self._tag = ""
        self._refresh_at = 0.0
        self._refresh = Backoff(FIRST_S, LONGEST_S, rand)
        self._away: str | None = None

    async def close(self) -> None:
        """See Issuer.close."""
        await self._client.close()

    async def _bear(self, error: ServiceRefused, identity: SpiffeId, *, last: bool) -> None:
        """Waits for as long as the service has asked for that refuses a certificate. Raises IssuerError when it is no
        use: for good, for too long, or because it was the last try."""
        wait = error.retry_after
        if last or error.for_good or wait is None or wait > _PATIENCE_S:
            raise IssuerError(f"{self.describe()} refuses a certificate for {identity}: {error}") from None
        await asyncio.sleep(wait * (1 + self._random()))

    async def _signed(self, answer: Certificate) -> Signed:
        """What the service has issued. If it is by other trust anchors than those that are known, these are fetched.
        Raises IssuerError."""
        if answer.bundle != self._tag or answer.anchor not in self.bundle.fingerprints:
            await self._fetch()
        self._issued_by(answer.anchor)
        return Signed(answer.chain, answer.issued)

    def _faults(self) -> Iterator[Fault]:
        """See Issuer.condition; of the service itself."""
        if self._away is not None:
            remedy = "it is asked again and again; certificates go on as long as they are valid"
            yield Fault(Flaw.AWAY, self._away, remedy)

    async def _fetch(self) -> None:
        """Raises IssuerError."""
        try:
            answer = await self._client.ask(BUNDLE, tag=self._tag)
        except ServiceAway as error:
            raise self._is_away(error) from None
        except ServiceRefused as error:
            raise IssuerError(f"{self.describe()} does not give its trust anchors: {error}") from None
        self._away = None
        self._refresh.reset()
        self._refresh_at = asyncio.get_running_loop().time() + 60.0
        if answer is None:
            return
        if answer.trust_domain != self.trust_domain:
            raise IssuerError(
                f"{self.describe()} is for the trust domain {answer.trust_domain[:80]!a}, this agent for "
                f"{self.trust_domain}; correct 'trust_domain'"
            )
        self._refresh_at = asyncio.get_running_loop().time() + max(10, min(answer.refresh_seconds, 3600))
        self._take(answer.anchors, answer.anchor)
        self._tag = answer.tag

    def _take(self, anchors: str, issuing: str = "") -> None:
        """These are the trust anchors (PEM) now. `issuing`: the fingerprint of the one that is issued by. Raises
        IssuerError."""
        try:
            bundle = TrustBundle.read(self.trust_domain, anchors)
        except ValueError:
            raise IssuerError(f"{self.describe()} gave trust anchors that cannot be read") from None
        anchor = issuing or self.anchor
        if anchor not in bundle.fingerprints:
            anchor = min(bundle.fingerprints)
        if bundle != self.bundle or anchor != self.anchor:
            self.bundle, self.anchor = bundle, anchor
            log.info("%s has %d trust anchors", self.describe(), len(bundle.fingerprints))
            self._remember()

    def _remember(self) -> None:
        draft = self._directory / f".{ISSUER_STATE}.new"
        text = json.dumps({"trust_domain": self.trust_domain, "anchors": self.bundle.pem, "anchor": self.anchor})
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_text(text, encoding="ascii")
            draft.replace(self._directory / ISSUER_STATE)
        except OSError as error:
            log.warning("the trust anchors cannot be kept in %s: %s", self._directory, error.strerror or error)

    def _recall(self) -> None:
        """What a former agent was told."""
        try:
            known = json.loads((self._directory / ISSUER_STATE).read_text(encoding="ascii"))
            bundle = TrustBundle.read(self.trust_domain, known["anchors"])
            if known["trust_domain"] == self.trust_domain and known["anchor"] in bundle.fingerprints:
                self.bundle, self.anchor = bundle, known["anchor"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return

    def _issued_by(self, anchor: str) -> None:
        """A certificate came that is verified by this one."""
        if anchor in self.bundle.fingerprints and anchor != self.anchor:
            self.anchor = anchor
            self._remember()

    def _is_away(self, error: ServiceAway) -> IssuerError:
        self._away = f"the certificate service does not answer: {error}"
        return IssuerError(self._away)
