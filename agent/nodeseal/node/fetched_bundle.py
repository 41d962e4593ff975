"""What the bundle endpoint of one trust domain gave last, also over an agent's restart, and when to ask it again.

The times: as often as the bundle's `spiffe_refresh_hint` says, within bounds, each node a little earlier by chance. One
that fails is asked again sooner, then more and more seldom, up to that interval. The copy in the run directory has
nothing that is secret.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.spiffe_bundle import MAX_BYTES, SpiffeBundle, read_bundle
from nodeseal.backoff import Backoff
from nodeseal.local import run_directory
from nodeseal.mesh.federated import BundleEndpoint

log = logging.getLogger("nodeseal.agent")

DEFAULT_S = 300.0
"""Between two fetches of a bundle without a hint (SPIFFE Federation, section 4.1)."""
LEAST_S, MOST_S = 5.0, 86_400.0
"""Bounds of the hint."""
AGAIN_S = 10.0
"""After a first failure, and doubled after each further one."""
FIRST_S = 2.0
"""All nodes hear of a new endpoint at once; each waits up to so long."""
_JITTER = 0.1

_UNUSABLE = (
    AuthorityError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Given:
    """What an endpoint gave."""

    bundle: SpiffeBundle
    at: datetime
    url: str
    beside: str
    """Digest of what the mesh state's own bundle beside the endpoint was then; see digest."""


def digest(bundle: str | None) -> str:
    """By which a bundle is compared with a later one; "" for none."""
    return hashlib.sha256(bundle.encode()).hexdigest() if bundle is not None else ""


class FetchedBundle:
    """Of one trust domain and endpoint. Belongs to the event loop; reads and writes nothing."""

    def __init__(
        self, endpoint: BundleEndpoint, given: Given | None, now: datetime, clock: float,
        rand: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        """`given`: what is known from before, maybe from another endpoint; `clock`: seconds, monotonic."""
        self.endpoint = endpoint
        self.given = given
        self.failing: tuple[datetime, str] | None = None
        """Since when it could not be fetched, and why it could not the last time."""
        self._random = rand
        self._backoff = self._new_backoff()
        self.due = clock + FIRST_S * rand()
        """When to fetch it next, by the monotonic clock."""
        if given is not None and given.url == endpoint.url:
            remaining = self.interval - (now - given.at).total_seconds()
            self.due += min(max(remaining, 0.0), self.interval)

    @property
    def interval(self) -> float:
        """Seconds from one fetch to the next."""
        hint = self.given.bundle.refresh_hint if self.given is not None else None
        return DEFAULT_S if hint is None else min(max(float(hint), LEAST_S), MOST_S)

    def counts(self, beside: str | None) -> bool:
        """Whether what was given counts, beside the mesh state's own bundle: that one is the latest if it has changed
        since, until the next fetch (SPIFFE Federation, section 4.2)."""
        return self.given is not None and (beside is None or self.given.beside == digest(beside))

    def take(self, bundle: SpiffeBundle, beside: str | None, now: datetime, clock: float) -> bool:
        """The endpoint has given it. False: it is older than what the same endpoint gave before, and does not count."""
        before = self.given
        if before is not None and before.url == self.endpoint.url and self.counts(beside):
            old, new = before.bundle.sequence, bundle.sequence
            if old is not None and new is not None and new < old:
                why = f"{self.endpoint.url} gives an older bundle, of the sequence number {new}, than it did ({old})"
                self.fail(why, now, clock)
                return False
        self.given = Given(bundle, now, self.endpoint.url, digest(beside))
        self.failing = None
        self._backoff = self._new_backoff()
        self.due = clock + self.interval * (1 - _JITTER * self._random())
        return True

    def fail(self, why: str, now: datetime, clock: float) -> None:
        """It could not be fetched."""
        self.failing = (self.failing[0] if self.failing is not None else now, why)
        self.due = clock + self._backoff.next()

    def _new_backoff(self) -> Backoff:
        return Backoff(min(AGAIN_S, self.interval), self.interval, self._random)


class BundleCopies:
    """The files in the run directory with what endpoints gave. All of it may wait for the disk."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def read(self, trust_domain: str) -> Given | None:
        """None: there is none, or none that can be used."""
        path = self._path(trust_domain)
        try:
            with path.open("rb") as file:
                value = json.loads(file.read(2 * MAX_BYTES))
            if value["trust_domain"] != trust_domain:
                raise ValueError(f"it is of {value['trust_domain']!a}")
            anchors = read_bundle(value["anchors"].encode(), str(path)) if value["anchors"] else ""
            sequence, hint = (value[name] if value[name] is None else int(value[name]) for name in ("sequence", "hint"))
            at = datetime.fromtimestamp(float(value["at"]), UTC)
            return Given(SpiffeBundle(anchors, sequence, hint), at, str(value["url"]), str(value["beside"]))
        except FileNotFoundError:
            return None
        except _UNUSABLE as error:
            log.warning("the copy %s of the bundle of %s is not used: %s", path, trust_domain, error)
            return None

    def write(self, trust_domain: str, given: Given) -> None:
        """Whole or not at all. Raises OSError."""
        path = self._path(trust_domain)
        value = {
            "trust_domain": trust_domain,
            "url": given.url,
            "at": given.at.timestamp(),
            "sequence": given.bundle.sequence,
            "hint": given.bundle.refresh_hint,
            "beside": given.beside,
            "anchors": given.bundle.anchors,
        }
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(value), encoding="utf-8")
        draft.replace(path)

    def keep_only(self, trust_domains: Iterable[str]) -> None:
        """Deletes those of all others (SPIFFE Federation, section 6.3). Raises OSError."""
        kept = {self._path(one) for one in trust_domains}
        for path in run_directory.federated_bundles(self._run_dir):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, trust_domain: str) -> Path:
        # A trust domain may be as long as a file name.
        return run_directory.federated_bundle(self._run_dir, hashlib.sha256(trust_domain.encode()).hexdigest()[:32])
