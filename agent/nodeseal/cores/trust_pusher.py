"""Sending the trust anchors that the workloads of all cores verify their peers by.

Whoever asks for a push waits for the current core alone. Older cores, which finish their connections, get the same
behind its back: one that hangs delays nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.link import CoreLink
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.identity.trust import TrustBundle

log = logging.getLogger("nodeseal.agent")


class TrustPusher:
    """Keeps the cores at the trust anchors that `bundle` gives."""

    def __init__(self, core: CoreSupervisor, bundle: Callable[[], TrustBundle]) -> None:
        self._core = core
        self._bundle = bundle
        self._lock = asyncio.Lock()
        self._given: dict[int, TrustBundle] = {}
        """By the incarnation of a core: what it has."""
        self._older: asyncio.Task[None] | None = None

    @property
    def apart(self) -> bool:
        """Whether the current core takes them here; if not, it gets them with each workload's credentials."""
        return self._core.current is not None and self._core.current.trust_apart

    @property
    def given(self) -> TrustBundle | None:
        """What the current core has; None: it has not been told by this agent yet."""
        link = self._core.current
        if link is not None and not link.trust_apart:
            return self._bundle()
        return self._given.get(self._core.incarnation)

    def stop(self) -> None:
        """Nothing is sent by itself from here on."""
        if self._older is not None:
            self._older.cancel()

    async def push(self) -> None:
        """Returns when the current core has them. Raises CoreError when it did not take them."""
        async with self._lock:
            bundle, link = self._bundle(), self._core.current
            if link is not None and link.trust_apart:
                await self._give(link, bundle)
            alive = {one.incarnation for one in self._core.links()}
            self._given = {number: given for number, given in self._given.items() if number in alive}
        behind = any(self._given.get(one.incarnation) != bundle for one in self._core.links()[1:] if one.trust_apart)
        if behind and (self._older is None or self._older.done()):
            self._older = asyncio.create_task(self._push_older(bundle), name="trust for older cores")

    async def _push_older(self, bundle: TrustBundle) -> None:
        """One that refuses is asked again at the next push."""
        for link in self._core.links()[1:]:
            if not link.trust_apart:
                continue
            try:
                await self._give(link, bundle)
            except CoreGone:
                continue
            except CoreError as error:
                log.warning("the core of generation %d did not take the trust anchors: %s", link.generation, error)

    async def _give(self, link: CoreLink, bundle: TrustBundle) -> None:
        if self._given.get(link.incarnation) == bundle:
            return
        await link.call(CoreClient.trust_bundles, bundle.trust_domain, {bundle.trust_domain: bundle.pem})
        self._given[link.incarnation] = bundle
