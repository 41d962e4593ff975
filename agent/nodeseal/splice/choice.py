"""Which of many endpoints an answer names, and for how long it serves.

An answer has room for a few endpoints (native.ENDPOINTS_MAX). Of more it names a sample, and another one soon
(`SAMPLE_MS`): all of them get their part. The core goes through an answer's endpoints in turn, from the first on, so
every answer begins with another one: the clients of a service do not all begin with the same.

A client with an affinity gets one endpoint, chosen of all. It keeps it as long as it is an endpoint, until it has not
connected for the time that the service says. The core does not tell of each connection: it asks again after a part of
that time (`asked_again_ms`), so a client keeps its endpoint up to that much longer, and never shorter. Whom a client
gets first depends on its name and on the endpoints alone: another core, after a hot restart, chooses the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

from nodeseal.mesh.address import ApplicationAddress
from nodeseal.mesh.fronts import Sticky
from nodeseal.mesh.model import WorkloadName
from nodeseal.splice.native import ENDPOINTS_MAX

SAMPLE_MS = 10_000
_PART = 10
_LEAST_MS, _MOST_MS = 100, 60_000
_MOST_KEPT = 16_384
_T = TypeVar("_T")


def asked_again_ms(seconds: int) -> int:
    """For how long the core goes by one answer about an affinity of so many seconds."""
    return min(max(seconds * 1000 // _PART, _LEAST_MS), _MOST_MS)


@dataclass(frozen=True, slots=True)
class _Kept:
    endpoint: ApplicationAddress
    until: float


class Affinities:
    """Who keeps which endpoint. Those that were asked for longest ago are forgotten when there are too many."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._kept: dict[tuple[WorkloadName, WorkloadName, int, int], _Kept] = {}

    def pick(
        self, client: WorkloadName, sticky: Sticky, endpoints: Sequence[ApplicationAddress], now: float
    ) -> ApplicationAddress:
        """The endpoint for a connection at `now`, in seconds of any clock that never goes back."""
        key = (client, sticky.service, sticky.port, sticky.version)
        kept = self._kept.pop(key, None)
        if kept is not None and now <= kept.until and kept.endpoint in endpoints:
            endpoint = kept.endpoint
        else:
            endpoint = _first_choice(client, sticky, endpoints)
        if len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = _Kept(endpoint, now + sticky.seconds + asked_again_ms(sticky.seconds) / 1000)
        return endpoint


def _first_choice(client: WorkloadName, sticky: Sticky, endpoints: Sequence[ApplicationAddress]) -> ApplicationAddress:
    """Rendezvous hashing: if another endpoint goes or comes, few clients get another one."""
    seed = blake2b(f"{client} {sticky.service} {sticky.port}".encode(), digest_size=8)

    def weight(endpoint: ApplicationAddress) -> bytes:
        mixed = seed.copy()
        mixed.update(endpoint.address.packed + endpoint.port.to_bytes(2, "big"))
        return mixed.digest()

    return max(endpoints, key=weight)


class Choice:
    """For one answer."""

    def __init__(self, affinities: Affinities, generator: random.Random, client: WorkloadName) -> None:
        self.valid_ms = 0
        """For how long it serves; 0: until the mesh state changes."""
        self._affinities = affinities
        self._random = generator
        self._client = client

    def of_service(
        self, endpoints: Sequence[ApplicationAddress], sticky: Sticky | None
    ) -> Sequence[ApplicationAddress]:
        """See nodeseal.mesh.fronts.Choose."""
        if sticky is None:
            return self.cut(endpoints)
        self.valid_ms = asked_again_ms(sticky.seconds)
        return (self._affinities.pick(self._client, sticky, endpoints, time.monotonic()),)

    def cut(self, endpoints: Sequence[_T]) -> Sequence[_T]:
        """As many as an answer has room for, with any of them first."""
        count = len(endpoints)
        if count <= 1:
            return endpoints
        if count > ENDPOINTS_MAX:
            self.valid_ms = SAMPLE_MS
            return self._random.sample(endpoints, ENDPOINTS_MAX)
        first = self._random.randrange(count)
        return [*endpoints[first:], *endpoints[:first]]
