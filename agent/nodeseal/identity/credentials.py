"""Certificates for this node's workloads: issued by the embedded issuer, handed to the core, never written anywhere."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nodeseal.authority.certificates import fingerprint
from nodeseal.authority.description import Ending, endings, exposed
from nodeseal.authority.signer import AuthorityError, Issuer, Svid, renewal_time
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.mesh.trust import Trust

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


@dataclass(frozen=True, slots=True)
class CaCondition:
    """How the CA is: what of it ends soon, why the directory as it is now is not used (None: it is), and which of its
    files others could read or change; one line each."""

    endings: tuple[Ending, ...] = ()
    unused: str | None = None
    exposed: tuple[str, ...] = ()


class Credentials:
    """Issues from the CA directory. A changed directory is read anew; one that went bad leaves the last good issuer.
    For any thread."""

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
        self._refreshing = threading.Lock()
        self._trust: tuple[Issuer, Trust] | None = None

    @property
    def trust_domain(self) -> str:
        """The CA's."""
        return self._issuer.trust_domain

    @property
    def trust(self) -> Trust:
        """The CA, as other nodes are told of it."""
        issuer = self._issuer
        if self._trust is None or self._trust[0] is not issuer:
            self._trust = issuer, Trust.of(issuer.anchors, fingerprint(issuer.root))
        return self._trust[1]

    @property
    def bundle_pem(self) -> str:
        """The trust anchors, as whoever is issued a certificate gets them."""
        return self._issuer.bundle_pem

    def issue(self, identity: SpiffeId) -> Credential:
        """A fresh key and certificate. Blocks for a few milliseconds. Raises AuthorityError."""
        issuer, _unused = self._refresh()
        now = self._now()
        svid = issuer.issue(identity, lifetime=self._lifetime, now=now)
        renew_at = max(renewal_time(svid, self._random), now + _RENEWAL_MIN)
        return Credential(svid, issuer.bundle_pem, renew_at)

    def condition(self) -> CaCondition:
        """How the CA is now. Reads a changed directory anew; may wait for the disk."""
        issuer, unused = self._refresh()
        return CaCondition(
            tuple(endings(self._directory, issuer, self._now())), unused, tuple(exposed(self._directory))
        )

    def _refresh(self) -> tuple[Issuer, str | None]:
        """The issuer, and why it is not the directory's as it is now."""
        with self._refreshing:
            stamp = self._read_stamp()
            unused = self._read_anew() if stamp != self._stamp else None
            if stamp != self._stamp and unused is None:
                self._stamp = stamp
                log.info("the CA directory %s was read anew", self._directory)
            return self._issuer, unused

    def _read_anew(self) -> str | None:
        """Takes the directory as it is now, or says why not."""
        try:
            issuer = Issuer.load(self._directory, self._now())
        except AuthorityError as error:
            return str(error)
        if issuer.trust_domain != self._issuer.trust_domain:
            return f"it is for the trust domain {issuer.trust_domain}, this agent runs for {self._issuer.trust_domain}"
        self._issuer = issuer
        return None

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
