"""Issuers that sign: they get a request with the public key, and never see the private one, which is made here.

Each certificate is for a fresh key, also where a request is tried again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from nodeseal.clock import utc_now
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.issuer import Issuer, IssuerError, Svid
from nodeseal.identity.key import PrivateKey, PrivateKeyError
from nodeseal.identity.presented import PresentedError, svid_of
from nodeseal.mesh.spiffe import SpiffeId

MOVE_MOST = timedelta(hours=1)
"""So long it takes at most until all certificates are of the trust anchor that the issuer went over to."""
_MOVE_PART = 8  # and at most this part of a certificate's life: they are few when lives are short


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signing issuer answers. `issued`: when, by its clock."""

    chain_pem: str
    issued: datetime


class SigningIssuer(Issuer):
    """`issue` makes the key; `sign` is the issuer's own."""

    def __init__(self, kind: KeyKind = KeyKind.P256, now: Callable[[], datetime] = utc_now) -> None:
        """`kind`: of the keys; `now`: the wall clock."""
        self._kind = kind
        self._now = now
        self._anchor = ""
        self._since = now()

    @property
    def anchor(self) -> str:
        """See Issuer.anchor."""
        return self._anchor

    @anchor.setter
    def anchor(self, fingerprint: str) -> None:
        if fingerprint != self._anchor:
            self._anchor, self._since = fingerprint, self._now()

    def superseded(self, svid: Svid) -> bool:
        """See Issuer.superseded. A rotation of the root would wait for half a certificate's life otherwise. Each has a
        time of its own, by its serial number, which is random: a fleet does not ask all at once."""
        if svid.anchor == self._anchor:
            return False
        share = int(svid.serial[-8:], 16) / 0xFFFFFFFF
        return self._now() >= self._since + share * min(MOVE_MOST, (svid.not_after - svid.issued) / _MOVE_PART)

    async def issue(self, identity: SpiffeId, present: Svid | None = None) -> Svid:
        """See Issuer.issue."""
        try:
            key = PrivateKey.generate(self._kind)
            request = key.request(str(identity)).decode()
        except PrivateKeyError as error:
            raise IssuerError(f"no key can be made for {identity}: {error}") from None
        signed = await self.sign(identity, request, present)
        try:
            return svid_of(identity, signed.chain_pem, key, self.bundle, now=self._now(), issued=signed.issued)
        except PresentedError as error:
            raise IssuerError(f"{self.describe()} gave for {identity} what cannot be used: it {error}") from None

    @abstractmethod
    async def sign(self, identity: SpiffeId, request: str, present: Svid | None) -> Signed:
        """A certificate for the key of a request (PKCS 10, PEM); `bundle` has what it is verified by when this returns.
        Raises IssuerError."""
