"""This node's publication, by which the other nodes know what is enrolled here: kept true as long as the agent runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from nodeseal.mesh.model import Workload, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.trust import Trust
from nodeseal.sources.source import PublicationError, Source

log = logging.getLogger("nodeseal.agent")


class OwnPublication:
    """Writes it, and heals it when somebody else changes it."""

    def __init__(
        self, source: Source, trust: Callable[[], Trust | None], workloads: Callable[[], frozenset[Workload]]
    ) -> None:
        """`trust`: this node's CA, `workloads`: those that are captured and stay, each when it is called."""
        self._source = source
        self._trust = trust
        self._workloads = workloads
        self._publishing = asyncio.Lock()
        self._published: frozenset[Workload] | None = None
        self._published_trust: Trust | None = None
        self._failure: str | None = None

    async def publish(self, *, healing: bool = False) -> None:
        """Publishes the workloads, unless they are published already; `healing`: also then. Raises PublicationError."""
        async with self._publishing:
            workloads = self._workloads()
            if workloads == self._published and not healing:
                return
            trust = self._trust()
            renewed = workloads != self._published or trust != self._published_trust
            self._published, self._published_trust = None, trust
            try:
                wrote = await self._source.publish(workloads, trust)
            except PublicationError as error:
                if self._failure is None:
                    log.warning("%s", error)
                self._failure = str(error)
                raise
            failed, self._failure = self._failure is not None, None
            self._published = workloads
            if healing and wrote and not failed and not renewed:
                log.warning("the publication of this node had been changed by somebody else: written again")

    async def heal(self) -> None:
        """Publishes again; what fails is a problem until it does not."""
        if self._published is None and self._failure is None:
            return  # whoever publishes first tries by himself
        with contextlib.suppress(PublicationError):
            await self.publish(healing=True)

    async def compare(self, read: AbstractSet[WorkloadName], known: AbstractSet[WorkloadName]) -> None:
        """Publishes again when there is something else to say, and when the source does not say what this agent wrote:
        somebody edited or removed it, and peers that believe it would send plaintext. What was read may also be older
        than what was written; then this writes nothing. `read`: what it says; `known`: the workloads of this node that
        the mesh state has."""
        if self._published is None:
            return
        if read != {one.key for one in self._published} & known or self._workloads() != self._published:
            await self.heal()

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        if self._failure is not None:
            yield Problem(ProblemWord.NOT_PUBLISHED, self._failure, "it is tried again")
