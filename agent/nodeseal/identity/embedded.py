"""The embedded issuer: signs with the intermediate of a CA directory.

A changed directory is read anew; one that went bad leaves what was read before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from nodeseal.authority.certificates import fingerprint, pem
from nodeseal.authority.csr import requested_key
from nodeseal.authority.description import endings, exposed
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.live_signer import LiveSigner
from nodeseal.authority.refused import Refused
from nodeseal.authority.signer import Signer
from nodeseal.clock import utc_now
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.issuer import Fault, Flaw, IssuerError, Svid
from nodeseal.identity.signing import Signed, SigningIssuer
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId

T = TypeVar("T")

CHECK_S = 5.0
"""So often the directory is looked at by whoever follows the trust anchors."""


class EmbeddedIssuer(SigningIssuer):
    """Signs in a thread of its own: a disk that hangs keeps nobody else waiting."""

    def __init__(
        self,
        directory: Path,
        lifetime: timedelta,
        kind: KeyKind = KeyKind.P256,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`lifetime`: of the certificates; `kind`: of the workloads' keys; `now`: the wall clock. Reads the directory.
        Raises IssuerError when it cannot be used."""
        super().__init__(kind, now)
        self._directory = directory
        self._lifetime = lifetime
        try:
            self._live = LiveSigner(directory, now)
        except AuthorityError as error:
            raise IssuerError(str(error)) from None
        if self._live.signer is None:
            raise IssuerError(str(self._live.why))
        self._signer = self._live.signer
        self.trust_domain = self._signer.trust_domain
        self._show()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="issuer")

    def describe(self) -> str:
        """See Issuer.describe."""
        return f"the CA directory {self._directory}"

    async def sign(self, identity: SpiffeId, request: str, present: Svid | None) -> Signed:
        """See SigningIssuer.sign: a few milliseconds, unless the disk is slow."""
        del present
        return await self._run(lambda: self._sign(identity, request))

    async def changes(self) -> AsyncIterator[TrustBundle]:
        """See Issuer.changes."""
        told: TrustBundle | None = None
        while True:
            if self.bundle != told:
                told = self.bundle
                yield told
            await asyncio.sleep(CHECK_S)
            await self._run(self._live.refresh)

    async def condition(self) -> tuple[Fault, ...]:
        """See Issuer.condition."""
        return await self._run(self._condition)

    async def close(self) -> None:
        """See Issuer.close."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        finally:
            # Here, so that whoever asks in the event loop never sees one of them without the other.
            if self._live.signer is not None and self._live.signer is not self._signer:
                self._signer = self._live.signer
                self._show()

    def _show(self) -> None:
        self.bundle = TrustBundle.read(self._signer.trust_domain, self._signer.bundle_pem)
        self.anchor = fingerprint(self._signer.root)

    # ---- in the thread

    def _sign(self, identity: SpiffeId, request: str) -> Signed:
        self._live.refresh()
        try:
            return sign(self._newest(), identity, request, lifetime=self._lifetime, now=self._now())
        except AuthorityError as error:
            raise IssuerError(str(error)) from None

    def _condition(self) -> tuple[Fault, ...]:
        unused = self._live.refresh()
        found = [
            Fault(Flaw.EXPIRED if one.over else Flaw.EXPIRES, one.text, one.remedy)
            for one in endings(self._directory, self._newest(), self._now())
        ]
        if unused is not None:
            text = f"the changed CA directory is not used: {unused}"
            found.append(Fault(Flaw.STALE, text, "the agent goes on with what it read before"))
        remedy = "chown root and chmod it: 600 for keys, 700 for the directory"
        found += [Fault(Flaw.EXPOSED, text, remedy) for text in exposed(self._directory)]
        return tuple(found)

    def _newest(self) -> Signer:
        return self._live.signer or self._signer


def sign(signer: Signer, identity: SpiffeId, request: str, *, lifetime: timedelta, now: datetime) -> Signed:
    """A certificate for the key of a request (PKCS 10, PEM). Raises AuthorityError, see Signer.sign."""
    try:
        key = requested_key(request)
    except Refused as error:
        raise AuthorityError(f"cannot issue {identity}: {error}") from None
    cert = signer.sign(identity, key, lifetime=lifetime, now=now)
    issued = min(max(now, cert.not_valid_before_utc), cert.not_valid_after_utc)
    return Signed(pem(cert) + "".join(map(pem, signer.chain)), issued)
