"""Sending the mesh that the core decides by: as a difference where it has the one before, once for many who ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nodeseal.agent.supervisor import CoreSupervisor
from nodeseal.core.bridge import CoreClient, CoreError, CoreGone
from nodeseal.mesh.model import Mesh, difference

log = logging.getLogger("nodeseal.agent")

_RESEND_S = 1.0


class MeshPusher:
    """Keeps the core at what `effective` gives; None means that there is nothing to send yet."""

    def __init__(self, core: CoreSupervisor, effective: Callable[[], Mesh | None]) -> None:
        self.mesh: Mesh | None = None
        """What the core decides by, or is to."""
        self.epoch = 0
        self._core = core
        self._effective = effective
        self._lock = asyncio.Lock()
        self._asked = 0
        self._done = 0
        self._sent: tuple[int, int, Mesh] | None = None  # incarnation of the core, epoch, mesh
        self._again: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether a push is under way."""
        return self._lock.locked()

    def adopt(self, mesh: Mesh | None, epoch: int) -> None:
        """What an adopted core has; None when it has none, or nobody could read it."""
        self.epoch = epoch
        if mesh is not None:
            self.mesh = mesh
            self._sent = (self._core.incarnation, epoch, mesh)

    def stop(self) -> None:
        """Nothing is sent again by itself from here on."""
        self._stopped = True
        if self._again is not None:
            self._again.cancel()

    async def push(self) -> None:
        """Sends the present mesh. Never raises: a core that is gone gets everything when the next one starts, a refusal
        is tried again."""
        self._asked += 1
        asked = self._asked
        async with self._lock:
            if self._done >= asked:
                return  # one that began after this was asked for has taken it along
            covered = self._asked
            await self._push()
            self._done = covered

    async def _push(self) -> None:
        mesh = self._effective()
        if mesh is None:
            return
        self.mesh = mesh
        if self._core.pid is None:
            return
        incarnation, epoch = self._core.incarnation, self.epoch + 1
        base = self._sent if self._sent is not None and self._sent[0] == incarnation else None
        try:
            if base is None:
                await self._core.call(CoreClient.mesh, mesh, epoch)
            elif not await self._core.call(_send_change, base[2], mesh, epoch, base=base[1]):
                epoch = base[1]
        except CoreGone:
            self._sent = None
            return
        except CoreError as error:
            log.error("the core did not take the mesh state: %s; sending it again", error)
            self._sent = None
            # It may have taken it and the answer was lost: its epoch only grows.
            self.epoch = epoch
            asyncio.get_running_loop().call_later(_RESEND_S, self._push_again)
            return
        self.epoch = max(self.epoch, epoch)
        self._sent = (incarnation, epoch, mesh)

    def _push_again(self) -> None:
        if not self._stopped:
            self._again = asyncio.create_task(self.push(), name="push")


def _send_change(client: CoreClient, old: Mesh, new: Mesh, epoch: int, *, base: int) -> bool:
    """In the core's thread: for a large mesh, finding what is different takes a while too. False: nothing is."""
    change = difference(old, new)
    if change.size:
        client.mesh_difference(change, epoch, base=base)
    return change.size > 0
