"""Whose plaintext this node's workloads take because they are permissive: whom strict mode would refuse.

The BPF programs count connections by where the other side is, as long as a workload is captured, whatever becomes of
the agent. They know no time. So the agent looks now and then: where a count has grown, somebody was there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nodeseal.capture import constants
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.natives import Place, Total
from nodeseal.contracts.status import PlainClientRow
from nodeseal.mesh.address import Address
from nodeseal.mesh.model import Mesh

log = logging.getLogger("nodeseal.agent")

LOOK_S = 30.0
KEPT_S = 86400.0
SHOWN = 64
"""Of a workload: those that were seen last."""
_KEPT = 16384
"""Of all workloads together."""


class Reader(Protocol):
    """CaptureThread."""

    async def native_places(self) -> dict[tuple[str, Place], Total]:
        """See there."""


@dataclass(slots=True)
class _Seen:
    opened: int
    """As it is counted."""
    last: float
    """When it was last seen to be there."""


class PlainClients:
    """Of all workloads of the node. All methods belong to the event loop."""

    def __init__(self, capture: Reader, clock: Callable[[], float] = time.monotonic) -> None:
        self._capture = capture
        self._clock = clock
        self._seen: dict[tuple[str, Address], _Seen] = {}

    async def run(self) -> None:
        """Never ends by itself."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Never raises. What is counted before the first look counts as seen then."""
        try:
            counted = await self._capture.native_places()
        except (OSError, CaptureError) as error:
            log.error("the clients of native connections cannot be read: %s", error)
            return
        now, seen = self._clock(), {}
        for (workload, place), total in counted.items():
            if not place.inbound or place.reason != constants.NATIVE_DECIDED:
                continue
            key = (workload, place.far)
            before = self._seen.get(key)
            # Those that are open are there now. A count that has shrunk is that of a sandbox made anew.
            gone = before is not None and total.opened == before.opened == total.closed
            seen[key] = _Seen(total.opened, before.last if gone and before is not None else now)
        recent = sorted(seen.items(), key=lambda one: one[1].last, reverse=True)[:_KEPT]
        self._seen = dict(recent)

    def rows(self, mesh: Mesh | None) -> Mapping[str, list[PlainClientRow]]:
        """Workload -> clients of the last day that are not enrolled by now, the latest first, at most SHOWN."""
        now, found = self._clock(), dict[str, list[PlainClientRow]]()
        for (workload, far), seen in self._seen.items():
            if now - seen.last > KEPT_S:
                break
            if mesh is not None and any(one.accepts_tunnels for one in mesh.claimants(far)):
                continue
            rows = found.setdefault(workload, [])
            if len(rows) < SHOWN:
                known = mesh.by_address.get(far) if mesh is not None else None
                name = str(known.key) if known is not None else None
                last = round(now - seen.last, 1)
                rows.append(PlainClientRow(str(far), name, seen.opened, last))
        return found
