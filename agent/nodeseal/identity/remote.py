"""The issuer in the network: the certificate service, `nodeseal ca serve`.

Theory of operation. The node joins with a token, once, and gets a node certificate, which it renews at half of its life
and keeps in a file (node_certificate.py). With that it asks for the certificates of its workloads. A node that was away
longer than its node certificate lives needs another token. It says so, and joins as soon as there is one in the file.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path

from nodeseal.backoff import Backoff
from nodeseal.clock import utc_now
from nodeseal.contracts.authority import (
    CERTIFICATES,
    NODE,
    NodeRequest,
    ServiceWord,
)
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.issuer import Fault, Flaw, IssuerError, Svid
from nodeseal.identity.key import PrivateKey, PrivateKeyError
from nodeseal.identity.node_certificate import NodeProof
from nodeseal.identity.presented import PresentedError
from nodeseal.identity.service_client import ServiceAway, ServiceClient, ServiceRefused
from nodeseal.identity.service_issuer import FIRST_S, LONGEST_S, ServiceIssuer, asked_for
from nodeseal.identity.signing import Signed
from nodeseal.identity.trust import TrustBundle
from nodeseal.linux.permissions import PRIVATE, others_can
from nodeseal.local.issuers import ServiceCa
from nodeseal.mesh.spiffe import SpiffeId

log = logging.getLogger("nodeseal.agent")

CHECK_S = 5.0
"""So often it is looked at what is due."""
BEGIN_S = 30.0
"""So long the service is waited for when nothing is known of its trust anchors."""

_AGAIN_S = 1.0
_TRIES_OF_A_LIFE = 20  # at least, half of them in the half of it in which it is to be renewed
_TRIES = 3
_TOKEN_MAX = 4096
_UNPROVEN = (ServiceWord.NODE_UNPROVEN, ServiceWord.NODE_EXPIRED)


class RemoteIssuer(ServiceIssuer):
    """One node's."""

    def __init__(
        self,
        ca: ServiceCa,
        node: str,
        run_dir: Path,
        kind: KeyKind = KeyKind.P256,
        *,
        now: Callable[[], datetime] = utc_now,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`now`: the wall clock; `rand` gives numbers from 0 to 1. Raises IssuerError."""
        super().__init__(ServiceClient(ca), ca.trust_domain, ca.keep or run_dir, kind, now=now, rand=rand)
        self._ca = ca
        self._node = node
        self._proof: NodeProof | None = None
        self._renewal = Backoff(FIRST_S, LONGEST_S, rand)
        self._renew_at = 0.0
        self._share = 0.9 + 0.2 * rand()
        """Of half of the node certificate's life: not all nodes renew at once."""
        self._joining = asyncio.Lock()
        self._spent = ""
        """The digest of a token that was refused."""
        self._unproven: str | None = None
        self._revoked = False
        """The node's certificate, when it was shown last. One that joins anew has another."""
        self._joined = 0

    def describe(self) -> str:
        """See Issuer.describe."""
        return f"the certificate service {self._ca.services[0]}"

    async def begin(self) -> None:
        """See Issuer.begin."""
        self._proof = NodeProof.load(self._directory, self.trust_domain, self._node)
        self._pace()
        await self._show()
        self._recall()
        deadline = asyncio.get_running_loop().time() + BEGIN_S
        while not self.bundle.fingerprints:
            try:
                await self._fetch()
            except IssuerError as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise IssuerError(f"{error}; start the service, or correct the setting 'ca'") from None
                await asyncio.sleep(_AGAIN_S)

    async def sign(self, identity: SpiffeId, request: str, present: Svid | None) -> Signed:
        """See SigningIssuer.sign."""
        message = asked_for(identity, request, present)
        for last in (False,) * (_TRIES - 1) + (True,):
            await self._prove()
            joined = self._joined
            try:
                answer = await self._client.ask(CERTIFICATES, message)
            except ServiceAway as error:
                raise self._is_away(error) from None
            except ServiceRefused as error:
                self._away = None
                if error.word == ServiceWord.NODE_CERTIFICATE_REVOKED:
                    # It is kept: the revocation may be taken back.
                    self._revoked = True
                    self._unproven = f"{self.describe()} does not take the certificate of the node: {error}"
                    if self._fresh_token() is not None and not last:
                        continue
                if error.word in _UNPROVEN and not last:
                    if joined == self._joined:
                        self._proof = None
                    continue
                await self._bear(error, identity, last=last)
                continue
            assert answer is not None  # nothing was asked by a tag
            self._away = None
            if self._revoked:
                self._revoked, self._unproven = False, None
            return await self._signed(answer)
        raise AssertionError("the last try has an end")

    async def changes(self) -> AsyncIterator[TrustBundle]:
        """See Issuer.changes."""
        told: object = None
        while True:
            if (now := (self.bundle, self._joined)) != told:
                told = now
                yield self.bundle
            await asyncio.sleep(CHECK_S)
            await self._keep_up()

    async def condition(self) -> tuple[Fault, ...]:
        """See Issuer.condition."""
        found = []
        if self._unproven is not None:
            found.append(Fault(Flaw.UNPROVEN, self._unproven, self._remedy()))
        found += self._faults()
        for path in (self._ca.token_file, self._proof.path if self._proof is not None else None):
            try:
                why = others_can(path.stat(), PRIVATE) if path is not None else None
            except OSError:
                continue
            if why is not None:
                found.append(Fault(Flaw.EXPOSED, f"others can read {path}: {why}", "chown root and chmod 600 it"))
        return tuple(found)

    # ---- the node's own certificate

    async def _prove(self) -> None:
        """Joins if need be. Raises IssuerError."""
        async with self._joining:
            revoked = self._revoked and self._fresh_token() is not None
            if self._proof is None or self._proof.not_after <= self._now() or revoked:
                await self._join()

    async def _join(self) -> None:
        ended = f", its own has expired at {self._proof.not_after:%Y-%m-%d %H:%M}Z" if self._proof is not None else ""
        lacking = f"the node {self._node} has no valid certificate of {self.describe()}{ended}"
        token = self._token()
        if token is None:
            self._unproven = lacking
            raise IssuerError(f"{lacking}; {self._remedy()}")
        if hashlib.sha256(token.encode()).hexdigest() == self._spent:
            raise IssuerError(f"{self._unproven}; {self._remedy()}")
        await self._client.show(None)
        try:
            await self._certify(token)
        except ServiceRefused as error:
            if error.for_good:
                self._spent = hashlib.sha256(token.encode()).hexdigest()
                self._unproven = f"{lacking}, and its token is refused: {error}"
                raise IssuerError(f"{self._unproven}; {self._remedy()}") from None
            raise IssuerError(f"{self.describe()} does not let the node {self._node} join: {error}") from None
        self._unproven, self._revoked = None, False
        self._joined += 1
        log.info("the node %s has joined %s", self._node, self.describe())

    async def _certify(self, token: str | None) -> None:
        """Gets a node certificate, by a token or by the present one. Raises IssuerError, ServiceRefused."""
        try:
            key = PrivateKey.generate()
            csr = key.request(f"spiffe://{self.trust_domain}/node/{self._node}").decode()
            node = self._node if token is not None else ""
            answer = await self._client.ask(NODE, NodeRequest(csr=csr, node=node, token=token))
            assert answer is not None
            if answer.trust_domain != self.trust_domain:
                raise PresentedError(f"is of the trust domain {answer.trust_domain!a}, not of {self.trust_domain}")
            self._proof = NodeProof.keep(
                self._directory, answer.certificate, key, self.trust_domain, self._node, answer.issued
            )
        except ServiceAway as error:
            raise self._is_away(error) from None
        except (PresentedError, PrivateKeyError) as error:
            raise IssuerError(f"the node certificate that {self.describe()} gave cannot be used: it {error}") from None
        except OSError as error:
            raise IssuerError(f"cannot keep the node's certificate in {self._directory}: {error}") from None
        self._away = None
        self._share = 0.9 + 0.2 * self._random()
        self._pace()
        if token is not None:
            # What is kept of connections was made without a certificate.
            await self._client.show(None)
        await self._show()

    async def _show(self) -> None:
        if self._proof is not None:
            try:
                await self._client.show(self._proof.path)
            except (OSError, ssl.SSLError) as error:
                log.warning("the node's certificate in %s cannot be used: %s", self._proof.path, error)
                self._proof = None

    def _fresh_token(self) -> str | None:
        """One that was not refused yet."""
        token = self._token()
        return token if token is not None and hashlib.sha256(token.encode()).hexdigest() != self._spent else None

    def _token(self) -> str | None:
        path = self._ca.token_file
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                if (why := others_can(os.fstat(file.fileno()), PRIVATE)) is not None:
                    raise IssuerError(f"others can read the token in {path}: {why}; chmod 600 it, and make another")
                return file.read(_TOKEN_MAX).decode("ascii", "replace").strip() or None
        except OSError:
            return None

    def _remedy(self) -> str:
        where = self._ca.token_file or "a file, and name it as 'token_file'"
        return f"`nodeseal ca token create --node {self._node}` on the service, and put the token into {where}"

    # ---- what is due

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            if self._unproven is not None and self._fresh_token() is not None:
                await self._prove()
            if now >= self._refresh_at:
                self._refresh_at = now + self._refresh.next()
                await self._fetch()
            if self._is_due() and now >= self._renew_at:
                self._renew_at = now + self._renewal.next()
                async with self._joining:
                    await self._certify(None)
                log.info("the node %s has a new certificate of %s", self._node, self.describe())
        except (IssuerError, ServiceRefused) as error:
            log.warning("%s", error)

    def _pace(self) -> None:
        """While renewing fails it is tried again often enough, however short the node certificate's life."""
        if self._proof is not None:
            life = (self._proof.not_after - self._proof.issued).total_seconds()
            self._renewal = Backoff(
                min(FIRST_S, life / _TRIES_OF_A_LIFE), min(LONGEST_S, life / _TRIES_OF_A_LIFE), self._random
            )

    def _is_due(self) -> bool:
        proof = self._proof
        if proof is None or proof.not_after <= self._now():
            return False
        return self._now() >= proof.issued + (proof.not_after - proof.issued) / 2 * self._share
