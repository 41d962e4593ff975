"""A source of the mesh state in memory: what the agent needs of a source, and nothing of any kind of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nodeseal.local import run_directory
from nodeseal.mesh.model import Mesh, Phase, Workload, WorkloadName
from nodeseal.mesh.trust import Trust
from nodeseal.sources.source import (
    ClaimError,
    Concern,
    Description,
    MeshStateError,
    PublicationError,
    Publishers,
    Reference,
    Source,
    SourceAwayError,
    StateProblem,
)


@dataclass(eq=False)
class Publication:
    """What a node says."""

    names: frozenset[WorkloadName]
    trust: Trust | None = None


@dataclass(eq=False)
class MemoryMesh:
    """A mesh state that the sources of several nodes share. A test changes it and calls `changed`."""

    state: Mesh | MeshStateError | None = None
    publications: dict[str, Publication] = field(default_factory=dict)
    owners: dict[str, Path] = field(default_factory=dict)
    """Node -> the run directory that claimed it last."""
    claimed: set[str] = field(default_factory=set)
    """The nodes whose claim is held."""
    failure: str | None = None
    """Why nothing can be published or withdrawn."""
    away: bool = False
    followers: set[asyncio.Event] = field(default_factory=set)

    def changed(self) -> None:
        """Whoever follows it looks again."""
        for follower in self.followers:
            follower.set()

    def put(self, state: Mesh | MeshStateError) -> None:
        """A new state, or why there is none."""
        self.state = state
        self.changed()

    def source(self, node: str, run_dir: Path) -> MemorySource:
        """As this node sees it."""
        return MemorySource(self, node, run_dir)

    def source_at(self, reference: Reference, run_dir: Path) -> MemorySource:
        """The one that gave this reference."""
        if reference.get("memory") != str(id(self)):
            raise ValueError(f"no source of the mesh state is known by {dict(reference)}")
        return self.source(reference["node"], run_dir)

    def seen(self) -> Mesh | MeshStateError:
        """The state with the phases that the publications give it."""
        if self.state is None:
            return MeshStateError([StateProblem("the memory is empty")])
        if isinstance(self.state, MeshStateError):
            return self.state
        phases = dict.fromkeys(self.state.workloads, Phase.ABSENT)
        for node, publication in self.publications.items():
            for name in publication.names:
                if name in phases and self.state.workloads[name].node == node:
                    phases[name] = Phase.ENROLLED
        return self.state.with_phases(phases)

    def wrong_publications(self) -> list[StateProblem]:
        """One for each workload that another node than its own has published."""
        workloads = self.state.workloads if isinstance(self.state, Mesh) else {}
        return [
            StateProblem(f"{node} has published {name}, of {workloads[name].node}", Concern.PUBLICATION)
            for node, publication in sorted(self.publications.items())
            for name in sorted(publication.names)
            if name in workloads and workloads[name].node != node
        ]


class MemorySource(Source):
    """One node's."""

    def __init__(self, memory: MemoryMesh, node: str, run_dir: Path) -> None:
        self.node = node
        self.publishers: Publishers = {}
        self._memory = memory
        self._run_dir = run_dir

    def describe(self) -> Description:
        return Description("in memory", "the memory", "show that memory to it")

    def reference(self) -> Reference:
        return {"memory": str(id(self._memory)), "node": self.node}

    def verify(self) -> Iterator[str]:
        if self._memory.away:
            yield "the memory is not there"
        elif self._memory.owners.get(self.node) != self._run_dir and (why := self._why_not()) is not None:
            yield why

    async def load(self) -> Mesh:
        seen = self._memory.seen()
        if isinstance(seen, MeshStateError):
            raise seen
        return seen

    async def changes(self) -> AsyncIterator[Mesh | MeshStateError]:
        changed = asyncio.Event()
        self._memory.followers.add(changed)
        told: Mesh | None = None
        complained = ""
        try:
            while True:
                changed.clear()
                self.publishers = {node: one.trust for node, one in self._memory.publications.items()}
                seen = self._memory.seen()
                wrong = seen if isinstance(seen, MeshStateError) else MeshStateError(self._memory.wrong_publications())
                if isinstance(seen, Mesh) and (seen != told or (complained and not str(wrong))):
                    told, complained = seen, ""
                    yield seen
                if str(wrong) != complained:
                    complained = str(wrong)
                    yield wrong
                await changed.wait()
        finally:
            self._memory.followers.discard(changed)

    async def claim(self) -> MemoryClaim:
        if (why := self._why_not()) is not None:
            raise ClaimError(why)
        return MemoryClaim(self._memory, self.node, self._run_dir)

    async def publish(self, workloads: Iterable[Workload], trust: Trust | None = None) -> bool:
        self._check("publish")
        names = frozenset(workload.key for workload in workloads)
        wanted, known = Publication(names, trust), self._memory.publications.get(self.node)
        if known is not None and (known.names, known.trust) == (wanted.names, wanted.trust):
            return False
        self._memory.publications[self.node] = wanted
        self._memory.changed()
        return True

    async def withdraw(self) -> str | None:
        self._check("withdraw")
        memory = self._memory
        if self.node in memory.claimed or memory.owners.get(self.node, self._run_dir) != self._run_dir:
            return None
        memory.owners.pop(self.node, None)
        known = memory.publications.pop(self.node, None)
        memory.changed()
        return f"{self.node} in memory" if known is not None else None

    def _check(self, verb: str) -> None:
        if self._memory.away:
            raise SourceAwayError("the memory is not there")
        if self._memory.failure is not None:
            raise PublicationError(f"cannot {verb}: {self._memory.failure}")

    def _why_not(self) -> str | None:
        """See Source.claim."""
        owner = self._memory.owners.get(self.node)
        if owner is None or (owner == self._run_dir and self.node not in self._memory.claimed):
            return None
        if self.node in self._memory.claimed:
            return f"another agent runs for the node {self.node}"
        return f"the node {self.node} is in use by {owner}" if run_directory.has_node(owner) else None


class MemoryClaim:
    """Held until it is released."""

    def __init__(self, memory: MemoryMesh, node: str, run_dir: Path) -> None:
        self._memory = memory
        self._node = node
        self._before = memory.owners.get(node)
        memory.owners[node] = run_dir
        memory.claimed.add(node)

    async def release(self, *, undo: bool = False) -> None:
        self._memory.claimed.discard(self._node)
        if undo and self._before is None:
            self._memory.owners.pop(self._node, None)
