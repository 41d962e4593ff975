"""This node's publication, without a node around it, over each kind of source."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from nodeseal.local import run_directory
from nodeseal.mesh.model import Mode, Workload
from nodeseal.mesh.trust import Trust
from nodeseal.node.former_publications import FormerPublications
from nodeseal.node.publication import OwnPublication
from nodeseal.sources.source import PublicationError, Source
from support.agent_fakes import TRUST, workload
from support.memory_source import MemoryMesh, MemorySource
from support.mesh_places import KINDS, DirectoryPlace, MeshPlace, place_of

A, B = workload("a", None), workload("b", None)


class World:
    """A place for the mesh state and a run directory; `workloads` are captured and stay."""

    def __init__(self, place: MeshPlace, run_dir: Path) -> None:
        self.place = place
        self.run_dir = run_dir
        self.workloads = {A}

    def source(self, node: str = "node1") -> Source:
        return self.place.source(node, self.run_dir)

    def own(self, node: str = "node1") -> OwnPublication:
        return OwnPublication(self.source(node), lambda: TRUST, lambda: frozenset(self.workloads))

    def former(self, node: str = "node1") -> FormerPublications:
        """As an agent of this node finds them, which notes its own."""
        found = FormerPublications(self.run_dir, self.source(node), self.place.source_at)
        found.remember_present()
        return found

    @property
    def published(self) -> set[str] | None:
        return self.place.published("node1")


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    return World(place_of(request.param, tmp_path), run_dir)


def test_what_is_published_already_is_not_written_again(world: World) -> None:
    async def story() -> None:
        own = world.own()
        await own.publish()
        assert world.published == {"default/a"}
        world.place.remove("node1")
        await own.publish()
        assert world.published is None
        world.workloads.add(B)
        await own.publish()
        assert world.published == {"default/a", "default/b"}

    asyncio.run(story())


def test_nothing_is_healed_before_the_first_publication(world: World) -> None:
    asyncio.run(world.own().heal())
    assert world.published is None


def test_what_somebody_changed_is_written_again_and_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        own = world.own()
        await own.publish()
        await own.heal()
        assert caplog.text == ""
        world.place.empty("node1")
        await own.heal()
        assert world.published == {"default/a"}
        assert "had been changed by somebody else" in caplog.text

    asyncio.run(story())


def test_only_what_the_mesh_state_has_is_compared(world: World) -> None:
    """A publication may name what the mesh state has no more: that is not a change of somebody else's."""

    async def story() -> None:
        own = world.own()
        await own.publish()
        world.place.remove("node1")
        await own.compare(set(), set())
        await own.compare({A.key}, {A.key, B.key})
        assert world.published is None
        await own.compare(set(), {A.key})
        assert world.published == {"default/a"}

    asyncio.run(story())


def test_workload_that_is_another_by_now_is_published_again_and_nobody_else_is_blamed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Kinds of sources that publish more than names have it from this."""
    source = Noting()
    workloads = {A}
    own = OwnPublication(source, lambda: TRUST, lambda: frozenset(workloads))

    async def story() -> None:
        await own.publish()
        await own.compare({A.key}, {A.key})
        assert source.told == [{A}]
        workloads.clear()
        strict = replace(A, mode=Mode.STRICT)
        workloads.add(strict)
        await own.compare({A.key}, {A.key})
        assert source.told == [{A}, {strict}]
        assert caplog.text == ""

    asyncio.run(story())


class Noting(MemorySource):
    """Notes what is published."""

    def __init__(self) -> None:
        super().__init__(MemoryMesh(), "node1", Path("/nowhere"))
        self.told: list[set[Workload]] = []

    async def publish(self, workloads: Iterable[Workload], trust: Trust | None = None) -> bool:
        self.told.append(set(workloads))
        return True


def test_what_cannot_be_written_is_a_problem_until_it_can(world: World) -> None:
    async def story() -> None:
        own = world.own()
        with world.place.failing("no space left"):
            with pytest.raises(PublicationError):
                await own.publish()
            await own.heal()
            ((word, text),) = [(one.word.value, one.text) for one in own.problems()]
            assert word == "not-published"
            assert "no space left" in text
        await own.heal()
        assert list(own.problems()) == []
        assert world.published == {"default/a"}

    asyncio.run(story())


# ---- those of former names


def test_publication_under_a_former_name_is_withdrawn(world: World) -> None:
    async def story() -> None:
        world.former()
        await world.own().publish()
        former = world.former("renamed")
        await world.own("renamed").publish()
        await former.withdraw()
        assert world.published is None
        assert world.place.published("renamed") == {"default/a"}
        assert list(former.problems()) == []

    asyncio.run(story())


def test_note_of_former_publications_is_read_until_all_are_withdrawn_and_then_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    remembered = run_directory.remembered_publications

    async def story() -> None:
        world.former()
        await world.own().publish()
        former = world.former("renamed")
        monkeypatch.setattr(
            run_directory, "remembered_publications", lambda run_dir: reads.append(run_dir) or remembered(run_dir)
        )
        with world.place.failing("read-only"):
            for _time in range(2):
                await former.withdraw()
        (problem,) = former.problems()
        assert problem.text.startswith("the former publication of the node node1 was not withdrawn: ")
        assert "read-only" in problem.text
        await former.withdraw()
        assert world.published is None
        assert list(former.problems()) == []
        reads.clear()
        for _time in range(3):
            await former.withdraw()
        assert reads == []

    asyncio.run(story())


def test_former_source_that_is_away_is_awaited_in_silence(tmp_path: Path) -> None:
    """Its file system may be mounted again."""
    place = DirectoryPlace(tmp_path / "mesh")
    place.directory.mkdir()
    world = World(place, tmp_path)

    async def story() -> None:
        world.former()
        await world.own().publish()
        former = world.former("renamed")
        place.directory.rename(tmp_path / "away")
        await former.withdraw()
        assert list(former.problems()) == []
        (tmp_path / "away").rename(place.directory)
        await former.withdraw()
        assert world.published is None
        assert [one["node"] for one in run_directory.remembered_publications(tmp_path)] == ["renamed"]

    asyncio.run(story())


def test_damaged_note_is_a_problem(world: World) -> None:
    former = world.former()
    (world.run_dir / run_directory.PUBLICATION).write_text("nonsense")
    asyncio.run(former.withdraw())
    (problem,) = former.problems()
    assert problem.word.value == "former-publication"


def test_note_of_a_source_that_nobody_knows_is_a_problem(world: World) -> None:
    world.former()
    run_directory.remember_publication(world.run_dir, {"carrier": "pigeon"})
    former = FormerPublications(world.run_dir, world.source(), world.place.source_at)
    asyncio.run(former.withdraw())
    (problem,) = former.problems()
    assert "no source of the mesh state is known by {'carrier': 'pigeon'}" in problem.text
