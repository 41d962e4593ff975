"""Which nodes have stopped to renew what they publish, and which of these are gone.

Every agent writes its MeshNode anew every two minutes. A node that was not seen to do so for ten minutes is silent.
What it has published counts on: its agent may be away while its cores carry everything, and a peer that took its
workloads for not enrolled would send them plaintext. Only where its Node is gone, or not ready, is it expired: nothing
of it counts. (A Node that is removed takes its objects with it, by their owner reference, in a cluster whose garbage
collector runs.)

The ten minutes are of time in which this agent would have seen a renewal, by its own clock. A watch that is broken
shows nothing; nor does one that is silent, which cannot be told from a broken one: so the time counts until a moment
after the last renewal of any node, this agent's own included.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from nodeseal.kubernetes.access import AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.objects import NODES
from nodeseal.sources.kubernetes.mesh_objects import own_key

log = logging.getLogger("nodeseal.agent")

RENEWAL_S = 120.0
SILENT_S = 600.0
_QUIET_S = RENEWAL_S * 1.5
"""A watch of renewals that has shown nothing for so long may be broken."""
_LOOK_S = 10.0
_AGAIN_S, _SELDOM_S = 60.0, 1800.0
"""A silent node's Node is asked for again after so long, and ever more seldom: a thousand agents do."""
_ASKED_AT_ONCE = 5


class WatchedTime:
    """When each node has renewed, in time in which a renewal would have been seen. Pure."""

    def __init__(self, now: float) -> None:
        """`now`, here and below: of a clock that goes evenly."""
        self._passed = 0.0
        self._looked = now
        self._last_sign = now
        self._seen: dict[str, float] = {}

    def seen(self, nodes: Collection[str], now: float) -> None:
        """These have written something."""
        self._last_sign = now
        self._seen.update(dict.fromkeys(nodes, self._passed))

    def look(self, nodes: Collection[str], now: float, *, watching: bool) -> frozenset[str]:
        """Those of `nodes`, which are all that have published something, that are silent. `watching`: it was watched
        since the last look."""
        if watching:
            self._passed += max(0.0, min(now, self._last_sign + _QUIET_S) - self._looked)
        self._looked = now
        self._seen = {node: self._seen.get(node, self._passed) for node in nodes}
        return frozenset(node for node, at in self._seen.items() if self._passed - at >= SILENT_S)


class Renewals:
    """Watches over the nodes, and asks for the Node of each that is silent."""

    def __init__(
        self,
        api: Api,
        nodes: Callable[[], Collection[str]],
        watching: Callable[[], bool],
        changed: Callable[[frozenset[str], frozenset[str]], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`nodes`: all that have published something; `watching`: MeshNodes are being watched; `changed` gets the nodes
        that are silent, and those of them that have expired."""
        self._api = api
        self._nodes = nodes
        self._watching = watching
        self._changed = changed
        self._clock = clock
        self._time = WatchedTime(clock())
        self._asked: dict[str, tuple[float, float]] = {}
        """When each was asked for, and after how many seconds it is again."""
        self._told: tuple[frozenset[str], frozenset[str]] = frozenset(), frozenset()

    def seen(self, nodes: Collection[str]) -> None:
        """The MeshNodes of these are other ones than before."""
        self._time.seen(nodes, self._clock())

    async def run(self) -> None:
        """Never ends."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Never raises: of a node that cannot be asked for nothing changes."""
        silent = self._time.look(self._nodes(), self._clock(), watching=self._watching())
        expired = set(self._told[1] & silent)
        self._asked = {node: asked for node, asked in self._asked.items() if node in silent}
        due = [node for node in sorted(silent) if self._is_due(node)]
        for node in due[:_ASKED_AT_ONCE]:
            try:
                found = await self._api.get(NODES, own_key(node))
            except (AwayError, RefusedError, AccessError, ValueError) as error:
                log.warning("node %s has not renewed what it publishes, and cannot be looked at: %s", node, error)
                break
            _, before = self._asked.get(node, (0.0, _AGAIN_S / 2))
            self._asked[node] = self._clock(), min(2 * before, _SELDOM_S)
            if found is None or not found.ready:
                expired.add(node)
            else:
                expired.discard(node)
        now = silent, frozenset(expired)
        if now == self._told:
            return
        for node in sorted(now[0] - self._told[0]):
            log.warning("node %s has not renewed what it publishes for %.0f minutes", node, SILENT_S / 60)
        for node in sorted(now[1] - self._told[1]):
            log.warning("node %s is gone or not ready: what it has published counts no more", node)
        self._told = now
        await self._changed(*now)

    def _is_due(self, node: str) -> bool:
        at, after = self._asked.get(node, (float("-inf"), 0.0))
        return self._clock() - at >= after
