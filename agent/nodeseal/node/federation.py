"""The bundles of the trust domains that the mesh is federated with, as this node knows them: from the mesh state, and
from the files that it names.

What a bundle said last counts while it cannot be read; a domain of which none was ever read is not trusted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.spiffe_bundle import read_bundle, read_bundle_file
from nodeseal.mesh.federated import FEDERATED, Federated
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord

log = logging.getLogger("nodeseal.agent")

LOOK_S = 1.0
"""So often files are read anew: they are small."""

_IDLE_S = 5.0  # while there are none


class Federation:
    """`bundles`: the anchors (PEM) by trust domain. Replaced as a whole when it changes."""

    def __init__(self) -> None:
        self.bundles: Mapping[str, str] = {}
        self._domains: tuple[Federated, ...] = ()
        self._unread: dict[str, str] = {}

    async def take(self, mesh: Mesh) -> None:
        """The mesh state is this from now on."""
        domains = tuple(mesh.of(FEDERATED).values())
        if domains != self._domains:
            self._domains = domains
            await self.look()

    async def run(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Follows the files; `changed` is called when a bundle is another one. Never ends."""
        while True:
            files = any(one.bundle_file for one in self._domains)
            await asyncio.sleep(LOOK_S if files else _IDLE_S)
            before = self.bundles
            if files:
                await self.look()
            if self.bundles is not before:
                await changed()

    async def look(self) -> None:
        """Reads all of them anew."""
        found, unread = {}, {}
        for one in self._domains:
            try:
                found[one.key] = await asyncio.to_thread(_read, one)
            except AuthorityError as error:
                unread[one.key] = str(error)
                if one.key not in self._unread:
                    log.warning("%s; what it said before counts", error)
                if one.key in self.bundles:
                    found[one.key] = self.bundles[one.key]
        self._unread = unread
        if found != self.bundles:
            log.info("federated with %s", ", ".join(sorted(found)) or "no trust domain")
            self.bundles = found

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        for domain, why in sorted(self._unread.items()):
            text = f"the trust domain {domain}: {why}"
            yield Problem(ProblemWord.BUNDLE_UNREAD, text, "correct it; what it said before counts", domain)


def _read(one: Federated) -> str:
    if one.bundle_file:
        return read_bundle_file(Path(one.bundle_file))
    return read_bundle(one.bundle.encode(), f"of the mesh state for {one.key}")
