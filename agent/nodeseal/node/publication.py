"""This node's publication: the file in the mesh directory by which the other nodes know what is enrolled here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from nodeseal.daemon import claim
from nodeseal.identity.credentials import Credentials
from nodeseal.local import run_directory
from nodeseal.local.config import Config
from nodeseal.mesh.model import WorkloadName
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.node.problems import Problem
from nodeseal.sources.directory.publications import Trust
from nodeseal.sources.directory.source import PublicationError, publish

log = logging.getLogger("nodeseal.agent")


class OwnPublication:
    """Writes it, heals it when somebody else changes it, and withdraws those of former names and directories."""

    def __init__(self, config: Config, credentials: Credentials, names: Callable[[], frozenset[WorkloadName]]) -> None:
        """`names`: the workloads that are captured and stay, when it is called."""
        self._config = config
        self._credentials = credentials
        self._names = names
        self._publishing = asyncio.Lock()
        self._published: frozenset[WorkloadName] | None = None
        self._published_trust: Trust | None = None
        self._trouble: str | None = None
        self._former_trouble: list[str] = []

    def remember(self) -> None:
        """Notes in the run directory where it will be, so that an agent of another name withdraws it. Raises OSError,
        ValueError."""
        run_directory.remember_publication(self._config.run_dir, self._config.mesh, self._config.node)

    async def publish(self, *, healing: bool = False) -> None:
        """Publishes the names, unless they are published already; `healing`: also then. Raises PublicationError."""
        async with self._publishing:
            names = self._names()
            if names == self._published and not healing:
                return
            self._published = None
            trust = self._credentials.trust
            renewed, self._published_trust = trust != self._published_trust, trust
            try:
                wrote = await asyncio.to_thread(publish, self._config.mesh, self._config.node, names, trust)
            except PublicationError as error:
                self._trouble = str(error)
                raise
            failed, self._trouble = self._trouble is not None, None
            self._published = names
            if healing and wrote and not failed and not renewed:
                log.warning("the publication of this node had been changed by somebody else: written again")

    async def heal(self) -> None:
        """Publishes again; what fails is logged."""
        if self._published is None and self._trouble is None:
            return  # whoever publishes first tries by himself
        try:
            await self.publish(healing=True)
        except PublicationError as error:
            log.warning("%s", error)

    async def compare(self, read: AbstractSet[WorkloadName], known: AbstractSet[WorkloadName]) -> None:
        """Publishes again when the file does not say what this agent wrote: somebody edited or removed it, and peers
        that believe it would send plaintext. What was read may also be older than what was written; then this writes
        nothing. `read`: what it says; `known`: the workloads of this node that the mesh state has."""
        if self._published is not None and read != self._published & known:
            await self.heal()

    async def withdraw_former(self) -> None:
        """Withdraws what agents of this run directory published under another name or in another directory: nothing of
        it is here any more. To be called again until it is done."""
        run_dir, now = self._config.run_dir, (self._config.mesh, self._config.node)
        self._former_trouble.clear()
        try:
            former = [one for one in run_directory.remembered_publications(run_dir) if one != now]
        except (OSError, ValueError) as error:
            self._former_trouble.append(str(error))
            return
        for mesh, node in former:
            if not mesh.is_dir():
                continue  # it may come back with its file system
            try:
                if await asyncio.to_thread(claim.withdraw_own, run_dir, mesh, node):
                    log.warning("withdrew the publication of %s in %s, as which this node ran before", node, mesh)
                run_directory.forget_publication(run_dir, mesh, node)
            except (OSError, ValueError, PublicationError) as error:
                self._former_trouble.append(f"the former publication of the node {node} was not withdrawn: {error}")

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        if self._trouble is not None:
            yield Problem(ProblemWord.NOT_PUBLISHED, self._trouble, "it is tried again")
        for text in self._former_trouble:
            yield Problem(ProblemWord.FORMER_PUBLICATION, text, "remove the file by hand if its node is no more")
