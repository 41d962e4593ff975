"""Where the nodes of a test find their mesh state, one class for each kind of source: the agent is to be the same over
all of them."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.documents.document import read_content
from nodeseal.mesh.model import Mesh, Workload
from nodeseal.mesh.trust import Trust
from nodeseal.sources.directory import claim, publications
from nodeseal.sources.directory import source as directory_source
from nodeseal.sources.directory.publications import read_publication
from nodeseal.sources.source import PublicationError, Reference, Source
from support.memory_source import MemoryMesh, Publication


class MeshPlace(ABC):
    """A mesh state that several nodes share, and what a test does to it behind their backs."""

    kind: str

    @abstractmethod
    def source(self, node: str, run_dir: Path) -> Source:
        """As this node sees it."""

    @abstractmethod
    def source_at(self, reference: Reference, run_dir: Path) -> Source:
        """As the agent's composition finds it again."""

    @abstractmethod
    def put(self, *workloads: Workload) -> None:
        """Replaces the state: these workloads, with the fields that every kind of source has."""

    @abstractmethod
    def published(self, node: str) -> set[str] | None:
        """The workloads that a node has published; None when it has published nothing."""

    @abstractmethod
    def trust(self, node: str) -> Trust | None:
        """What its publication says of its CA."""

    @abstractmethod
    def empty(self, node: str) -> None:
        """Somebody makes the node's publication say that nothing is enrolled."""

    @abstractmethod
    def remove(self, node: str) -> None:
        """Somebody removes the node's publication."""

    @abstractmethod
    def failing(self, why: str) -> contextlib.AbstractContextManager[None]:
        """Nothing can be published or withdrawn meanwhile."""

    async def publish(self, node: str, *workloads: Workload, trust: Trust | None = None) -> None:
        """What an agent of this node would do."""
        await self.source(node, Path("/nowhere")).publish(workloads, trust)


class DirectoryPlace(MeshPlace):
    """Files."""

    kind = "directory"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def source(self, node: str, run_dir: Path) -> Source:
        return directory_source.DirectorySource(self.directory, node, run_dir)

    def source_at(self, reference: Reference, run_dir: Path) -> Source:
        return directory_source.DirectorySource.at(reference, run_dir)

    def put(self, *workloads: Workload) -> None:
        fields = [
            {
                "name": one.key.name,
                "service_account": one.service_account,
                "node": one.node,
                "address": str(one.address),
                "enrolled": one.wanted,
                **({"netns": one.netns} if one.netns is not None else {}),
            }
            for one in workloads
        ]
        draft = self.directory / ".draft"
        draft.write_text(json.dumps({"trust_domain": "example.org", "workloads": fields}))
        draft.replace(self.directory / "mesh.yaml")

    def _path(self, node: str) -> Path:
        return publications.path_of(self.directory, node)

    def published(self, node: str) -> set[str] | None:
        if not self._path(node).exists():
            return None
        names = read_publication(read_content(self._path(node), "it"), None).names
        return {str(name) for name in names or ()}

    def trust(self, node: str) -> Trust | None:
        return read_publication(read_content(self._path(node), "it"), None).trust

    def empty(self, node: str) -> None:
        self._path(node).write_text(f"node: {node}\nenrolled: []\n")

    def remove(self, node: str) -> None:
        self._path(node).unlink()

    @contextlib.contextmanager
    def failing(self, why: str) -> Iterator[None]:
        def refuse(*_what: object) -> bool:
            raise PublicationError(why)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(directory_source, "publish", refuse)
            patch.setattr(claim, "withdraw", refuse)
            yield


class MemoryPlace(MeshPlace):
    """Objects."""

    kind = "memory"

    def __init__(self) -> None:
        self.memory = MemoryMesh()

    def source(self, node: str, run_dir: Path) -> Source:
        return self.memory.source(node, run_dir)

    def source_at(self, reference: Reference, run_dir: Path) -> Source:
        return self.memory.source_at(reference, run_dir)

    def put(self, *workloads: Workload) -> None:
        self.memory.put(Mesh.build("example.org", workloads))

    def published(self, node: str) -> set[str] | None:
        known = self.memory.publications.get(node)
        return {str(name) for name in known.names} if known is not None else None

    def trust(self, node: str) -> Trust | None:
        known = self.memory.publications.get(node)
        return known.trust if known is not None else None

    def empty(self, node: str) -> None:
        self.memory.publications[node] = Publication(frozenset())
        self.memory.changed()

    def remove(self, node: str) -> None:
        del self.memory.publications[node]
        self.memory.changed()

    @contextlib.contextmanager
    def failing(self, why: str) -> Iterator[None]:
        self.memory.failure = why
        try:
            yield
        finally:
            self.memory.failure = None


KINDS = (DirectoryPlace.kind, MemoryPlace.kind)
"""Of places, for a parametrized fixture."""


def place_of(kind: str, tmp_path: Path) -> MeshPlace:
    """A place of this kind; files are below `tmp_path`."""
    if kind == MemoryPlace.kind:
        return MemoryPlace()
    directory = tmp_path / "mesh"
    directory.mkdir()
    return DirectoryPlace(directory)
