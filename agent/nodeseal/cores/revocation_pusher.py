"""Sending what is revoked to all cores: the difference to what each has, or all of it.

The current core is waited for. Older cores, which finish their connections, get the same at the same time, and nobody
waits for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from nodeseal.contracts.core import REVOCATION_SINCE
from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.link import CoreLink
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.mesh.revoked import Digests, difference

log = logging.getLogger("nodeseal.agent")


class RevocationPusher:
    """Keeps the cores at the digests that `take` was given last (nodeseal.mesh.revoked.packed)."""

    def __init__(self, core: CoreSupervisor) -> None:
        self._core = core
        self._digests: bytes | None = None
        """None: nobody has said yet what is revoked, so cores keep what they have."""
        self._given: dict[int, bytes] = {}
        """By the incarnation of a core: what it has."""
        self._locks: dict[int, asyncio.Lock] = {}
        self._older: set[asyncio.Task[None]] = set()

    def take(self, digests: bytes) -> None:
        """These are revoked from the next push on."""
        self._digests = digests

    @property
    def unaware(self) -> list[CoreLink]:
        """Cores that know of no revocation: their connections go on."""
        return [link for link in self._core.links() if link.protocol < REVOCATION_SINCE]

    def stop(self) -> None:
        """Nothing is sent by itself from here on."""
        for task in self._older:
            task.cancel()

    async def push(self) -> None:
        """Returns when the current core has them. Raises CoreError when it did not take them."""
        links = self._core.links()
        alive = {link.incarnation for link in links}
        self._given = {number: given for number, given in self._given.items() if number in alive}
        self._locks = {number: lock for number, lock in self._locks.items() if number in alive}
        for link in links:
            if link is not self._core.current and self._given.get(link.incarnation) != self._digests:
                task = asyncio.create_task(self._give_older(link), name="revocations for an older core")
                self._older.add(task)
                task.add_done_callback(self._older.discard)
        if self._core.current in links and self._core.current is not None:
            await self._give(self._core.current)

    async def _give_older(self, link: CoreLink) -> None:
        """One that refuses is asked again at the next push."""
        try:
            await self._give(link)
        except CoreGone:
            pass
        except CoreError as error:
            log.warning("the core of generation %d did not take the revocations: %s", link.generation, error)

    async def _give(self, link: CoreLink) -> None:
        async with self._locks.setdefault(link.incarnation, asyncio.Lock()):
            digests, known = self._digests, self._given.get(link.incarnation)
            if digests is None or digests == known or link.protocol < REVOCATION_SINCE:
                return
            # What it has is certain again when it has answered.
            self._given.pop(link.incarnation, None)
            revoked, restored = await asyncio.to_thread(_change, known, digests)
            await link.call(CoreClient.revocations, revoked, restored, whole=known is None)
            self._given[link.incarnation] = digests


def _change(known: bytes | None, digests: bytes) -> tuple[Sequence[str], Sequence[str]]:
    """(what is revoked, what is not any more) from `known` to `digests`; all of it without anything known."""
    if known is None:
        return Digests(digests), ()
    revoked, restored = difference(known, digests)
    return Digests(revoked), Digests(restored)
