"""Certificates for this node's workloads: issued by the embedded issuer, handed to the core, never written anywhere."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nodeseal.identity.authority import AuthorityError, Issuer, Svid, renewal_time
from nodeseal.mesh.spiffe import SpiffeId

log = logging.getLogger("nodeseal.agent")

_RENEWAL_MIN = timedelta(seconds=1)  # an intermediate near its end makes half lives go to nothing
_Stamp = tuple[tuple[int, int, int], ...]


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Credential:
    """What the core gets for a workload, and when the next one is due."""

    svid: Svid
    bundle_pem: str
    renew_at: datetime


class Credentials:
    """Issues from the CA directory. A changed directory is read anew; one that went bad leaves the last good issuer."""

    def __init__(
        self,
        directory: Path,
        lifetime: timedelta,
        *,
        now: Callable[[], datetime] = utc_now,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """Raises AuthorityError when the directory cannot be used."""
        self._directory = directory
        self._lifetime = lifetime
        self._now = now
        self._random = rand
        self._stamp = self._read_stamp()
        self._issuer = Issuer.load(directory, now())

    @property
    def trust_domain(self) -> str:
        """The CA's."""
        return self._issuer.trust_domain

    def issue(self, identity: SpiffeId) -> Credential:
        """A fresh key and certificate. Blocks for a few milliseconds. Raises AuthorityError."""
        self._refresh()
        now = self._now()
        svid = self._issuer.issue(identity, lifetime=self._lifetime, now=now)
        renew_at = max(renewal_time(svid, self._random), now + _RENEWAL_MIN)
        return Credential(svid, self._issuer.bundle_pem, renew_at)

    def _refresh(self) -> None:
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        try:
            issuer = Issuer.load(self._directory, self._now())
        except AuthorityError as error:
            log.warning("the changed CA directory is not used: %s", error)
            return
        if issuer.trust_domain != self._issuer.trust_domain:
            log.warning(
                "the changed CA directory is not used: it is for the trust domain %s, this agent runs for %s",
                issuer.trust_domain,
                self._issuer.trust_domain,
            )
            return
        self._issuer, self._stamp = issuer, stamp
        log.info("the CA directory %s was read anew", self._directory)

    def _read_stamp(self) -> _Stamp:
        stamps = []
        for name in ("root.pem", "intermediate.pem", "intermediate.key"):
            try:
                status = (self._directory / name).stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(stamps)
