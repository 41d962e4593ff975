"""Sending the trust anchors that the workloads of all cores verify their peers by.

Whoever asks for a push waits for the current core alone. Older cores, which finish their connections, get the same
behind its back: one that hangs delays nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.link import CoreLink
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.identity.trust import TrustBundle

log = logging.getLogger("nodeseal.agent")

_Bundles = tuple[TrustBundle, Mapping[str, str]]
"""The own domain's, and (PEM) the others'."""


class TrustPusher:
    """Keeps the cores at the trust anchors that `bundle` gives for their own trust domain, and `others` (PEM) for those
    that it is federated with."""

    def __init__(
        self,
        core: CoreSupervisor,
        bundle: Callable[[], TrustBundle],
        others: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._core = core
        self._bundle = bundle
        self._others = others
        self._lock = asyncio.Lock()
        self._given: dict[int, _Bundles] = {}
        """By the incarnation of a core: what it has."""
        self._older: asyncio.Task[None] | None = None

    @property
    def apart(self) -> bool:
        """Whether the current core takes them here; if not, it gets them with each workload's credentials."""
        return self._core.current is not None and self._core.current.trust_apart

    @property
    def given(self) -> TrustBundle | None:
        """What the current core has for its own domain; None: it has not been told by this agent yet."""
        link = self._core.current
        if link is not None and not link.trust_apart:
            return self._bundle()
        given = self._given.get(self._core.incarnation)
        return given[0] if given is not None else None

    def stop(self) -> None:
        """Nothing is sent by itself from here on."""
        if self._older is not None:
            self._older.cancel()

    async def push(self) -> None:
        """Returns when the current core has them. Raises CoreError when it did not take them."""
        async with self._lock:
            bundles, link = (self._bundle(), self._others()), self._core.current
            if link is not None and link.trust_apart:
                await self._give(link, bundles)
            alive = {one.incarnation for one in self._core.links()}
            self._given = {number: given for number, given in self._given.items() if number in alive}
        behind = any(self._given.get(one.incarnation) != bundles for one in self._core.links()[1:] if one.trust_apart)
        if behind and (self._older is None or self._older.done()):
            self._older = asyncio.create_task(self._push_older(bundles), name="trust for older cores")

    async def _push_older(self, bundles: _Bundles) -> None:
        """One that refuses is asked again at the next push."""
        for link in self._core.links()[1:]:
            if not link.trust_apart:
                continue
            try:
                await self._give(link, bundles)
            except CoreGone:
                continue
            except CoreError as error:
                log.warning("the core of generation %d did not take the trust anchors: %s", link.generation, error)

    async def _give(self, link: CoreLink, bundles: _Bundles) -> None:
        if self._given.get(link.incarnation) == bundles:
            return
        own, others = bundles
        await link.call(CoreClient.trust_bundles, own.trust_domain, {**others, own.trust_domain: own.pem})
        self._given[link.incarnation] = bundles
