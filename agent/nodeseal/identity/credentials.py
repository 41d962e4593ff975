"""The lifecycle of the certificates that this node's workloads have: handed to the core, never written anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from nodeseal.clock import utc_now
from nodeseal.identity.fips import unapproved_svid
from nodeseal.identity.issuer import Issuer, IssuerError, Svid
from nodeseal.identity.trust import TrustBundle, TrustSet
from nodeseal.mesh.spiffe import Identity, SpiffeId
from nodeseal.mesh.trust import Trust
from nodeseal.mesh.trust_anchor import TrustAnchor

_RENEWAL_MIN = timedelta(seconds=1)  # an intermediate near its end makes half lives go to nothing
_SOONEST = 0.05
_NEAR = 0.1
"""A renewal that comes so much before or after its time, in half lives, is in turn."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What the core gets for a workload, and when the next one is due."""

    svid: Svid
    renew_at: datetime


class Credentials:
    """Asks the issuer for what the workloads need. All methods belong to the event loop."""

    def __init__(
        self,
        issuer: Issuer,
        *,
        now: Callable[[], datetime] = utc_now,
        rand: Callable[[], float] = random.random,
        anchors: Callable[[], Collection[TrustAnchor]] = tuple,
        why_not: Callable[[Identity], str | None] = lambda _identity: None,
        revoked: Callable[[Svid], bool] = lambda _svid: False,
        fips: bool = False,
    ) -> None:
        """`now`: the wall clock; `rand` gives numbers from 0 to 1; `anchors`: those of the mesh state, the same object
        as long as they have not changed; `why_not`: why nothing is issued for an identity, one line; `revoked`: whether
        a certificate was, by its number; `fips`: what the profile of this name refuses is not used."""
        self._issuer = issuer
        self._anchors = anchors
        self._why_not = why_not
        self._revoked = revoked
        self._fips = fips
        self._known: tuple[object, ...] = ()
        self._trust_set = TrustSet(issuer.bundle)
        self._now = now
        self._random = rand

    @property
    def trust_domain(self) -> str:
        """The only one that identities are issued in."""
        return self._issuer.trust_domain

    @property
    def trust_set(self) -> TrustSet:
        """Whom peers are verified by, and which anchors of the mesh state verify nobody."""
        known = (self._issuer.bundle, self._issuer.anchor, self._anchors())
        if len(known) != len(self._known) or any(
            one is not other for one, other in zip(known, self._known, strict=True)
        ):
            self._trust_set, self._known = TrustSet.of(*known), known
        return self._trust_set

    @property
    def bundle(self) -> TrustBundle:
        """The trust anchors that peers are verified by."""
        return self.trust_set.bundle

    @property
    def anchor(self) -> str:
        """The one that a certificate which is issued now is verified by."""
        return self._issuer.anchor

    @property
    def trust(self) -> Trust:
        """The CA, as other nodes are told of it."""
        return Trust.of(self.bundle.fingerprints, self.anchor)

    async def issue(self, identity: Identity, present: Credential | None = None) -> Credential:
        """A fresh key and certificate, in the place of `present`. Takes as long as the issuer does. Raises
        IssuerError."""
        if not isinstance(identity, SpiffeId):
            raise IssuerError(
                f"{identity} is of another trust domain than {self._issuer.trust_domain}, this node's; take `identity` "
                "out of the mesh state"
            )
        if (why := self._why_not(identity)) is not None:
            raise IssuerError(why)
        svid = await self._issuer.issue(identity, present.svid if present is not None else None)
        if self._fips and (why := unapproved_svid(svid, self._issuer.bundle)) is not None:
            raise IssuerError(f"{self._issuer.describe()} gave for {identity} what cannot be used: {why}")
        if svid.delivered:
            due = svid.not_after
        else:
            due = renewal_time(svid, self._random, present.renew_at if present is not None else None)
        return Credential(svid, max(due, self._now() + _RENEWAL_MIN))

    def superseded(self, credential: Credential) -> bool:
        """Whether it is to be replaced now, before it is due: because it was revoked, or see Issuer.superseded. Not by
        one of a trust anchor that the mesh state does not have yet: others would not trust it."""
        svid = credential.svid
        if not svid.delivered and self._revoked(svid):
            return True
        anchors = self._anchors()
        return self._issuer.superseded(svid) and (
            svid.delivered or not anchors or any(one.key == self._issuer.anchor_for(svid.identity) for one in anchors)
        )


class Validity(Protocol):
    """From when to when a certificate is valid."""

    @property
    def issued(self) -> datetime:
        """See Svid.issued."""

    @property
    def not_after(self) -> datetime:
        """When it ends."""


def renewal_time(svid: Validity, rand: Callable[[], float], due: datetime | None = None) -> datetime:
    """When to replace a certificate: at half its life, give or take a tenth, so that not all are replaced at once.

    One that was issued out of turn is replaced at any time within the first half of its life: many may have been
    issued with it, as when a fleet starts, loses a trust anchor, or finds its issuer again, and a tenth would keep them
    together for days. `due`: when the one before it was to be replaced; None: there was none. `rand` gives numbers from
    0 to 1. At least a second after it was issued, however short its life.
    """
    half = (svid.not_after - svid.issued) / 2
    in_turn = due is not None and abs(svid.issued - due) <= half * _NEAR
    share = 0.9 + 0.2 * rand() if in_turn else _SOONEST + (1 - _SOONEST) * rand()
    return svid.issued + max(half * share, _RENEWAL_MIN)
