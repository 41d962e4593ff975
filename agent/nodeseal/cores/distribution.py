"""Sending the mesh that cores decide by.

A mesh goes over as a difference where a core has the one before, once for many who ask.

Whoever asks for a push waits for the current core alone. Older cores, which finish their connections, get the same mesh
behind its back: one that hangs delays nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.link import CoreLink
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.mesh.model import Mesh

log = logging.getLogger("nodeseal.agent")

_RESEND_S = 1.0


class MeshPusher:
    """Keeps the cores at what `effective` gives; None means that there is nothing to send yet."""

    def __init__(self, core: CoreSupervisor, effective: Callable[[], Mesh | None]) -> None:
        self.mesh: Mesh | None = None
        """What the core decides by, or is to."""
        self.epoch = 0
        self._core = core
        self._effective = effective
        self._lock = asyncio.Lock()
        self._asked = 0
        self._done = 0
        self._sent: dict[int, tuple[int, Mesh]] = {}  # incarnation of a core -> epoch, mesh
        # Incarnation of a core -> the last epoch that it was told. Each core has its own count: what one is told
        # again, because nobody knows what it has, may be nothing new to another.
        self._told: dict[int, int] = {}
        self._again: asyncio.Task[None] | None = None
        self._older: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether a push is under way."""
        return self._lock.locked()

    def adopt(self, mesh: Mesh | None, epoch: int, latest: int) -> None:
        """What the adopted current core has (None when it has none, or nobody could read it), and at which epoch;
        `latest`: no adopted core is at a later one."""
        self.epoch = latest
        if mesh is not None:
            self.mesh = mesh
            self._sent[self._core.incarnation] = (epoch, mesh)

    def stop(self) -> None:
        """Nothing is sent again by itself from here on."""
        self._stopped = True
        for task in (self._again, self._older):
            if task is not None:
                task.cancel()

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
        current = self._core.current
        if current is None:
            return
        if await self._send(current, mesh, self.epoch + 1):
            self.epoch = self._told[current.incarnation]
        alive = {link.incarnation for link in self._core.links()}
        self._sent = {number: sent for number, sent in self._sent.items() if number in alive}
        self._told = {number: told for number, told in self._told.items() if number in alive}
        if self._core.older and (self._older is None or self._older.done()) and not self._stopped:
            self._older = asyncio.create_task(self._push_older(), name="push to older cores")

    def _knows(self, link: CoreLink) -> bool:
        return link.incarnation in self._sent

    async def _push_older(self) -> None:
        """Until each has the mesh that the current core has."""
        while True:
            mesh, epoch = self.mesh, self.epoch
            older = self._core.links()[1:]
            behind = [link for link in older if not self._knows(link) or self._sent[link.incarnation][1] is not mesh]
            if mesh is None or not behind:
                return
            await asyncio.gather(*(self._send(link, mesh, epoch) for link in behind))
            if any(not self._knows(link) for link in behind):
                return  # gone, or to be tried again

    async def _send(self, link: CoreLink, mesh: Mesh, epoch: int) -> bool:
        """Whether the core has got something; False as well when it is gone."""
        base = self._sent.get(link.incarnation)
        changed = True
        # Also of a core that a former agent told of: it refuses an epoch that it has had.
        epoch = max(epoch, self._told.get(link.incarnation, link.hello.epoch) + 1)
        try:
            if base is None:
                await link.call(CoreClient.mesh, mesh, epoch)
            else:
                changed = await link.call(CoreClient.mesh_change, base[1], mesh, epoch, base=base[0])
        except CoreGone:
            self._sent.pop(link.incarnation, None)
            return False
        except CoreError as error:
            log.error("the core (pid %d) did not take the mesh state: %s; sending it again", link.pid, error)
            # It may have been taken and the answer lost: a core's epoch only grows.
            self._told[link.incarnation] = epoch
            self._sent.pop(link.incarnation, None)
            asyncio.get_running_loop().call_later(_RESEND_S, self._push_again)
            return True
        if changed:
            self._told[link.incarnation] = epoch
        self._sent[link.incarnation] = (epoch if changed or base is None else base[0], mesh)
        return changed

    def _push_again(self) -> None:
        if not self._stopped:
            self._again = asyncio.create_task(self.push(), name="push")
