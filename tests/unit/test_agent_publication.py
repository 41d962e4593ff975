"""This node's publication, without a node around it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from nodeseal.mesh.model import WorkloadName
from nodeseal.node import publication
from nodeseal.node.publication import OwnPublication
from nodeseal.sources.directory.source import PublicationError
from support.agent_fakes import FakeCredentials, agent_config

A, B = WorkloadName("default", "a"), WorkloadName("default", "b")


class Place:
    """A mesh directory and a run directory; `names` are captured and stay."""

    def __init__(self, tmp_path: Path) -> None:
        mesh, run_dir = tmp_path / "mesh", tmp_path / "run"
        mesh.mkdir()
        run_dir.mkdir(mode=0o700)
        self.config = agent_config(mesh, run_dir=run_dir)
        self.names = {A}

    def own(self, **changes: object) -> OwnPublication:
        config = replace(self.config, **changes)
        return OwnPublication(config, FakeCredentials(), lambda: frozenset(self.names))

    def file(self, node: str = "node1") -> Path:
        return self.config.mesh / "enrolled" / f"{node}.yaml"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_is_published_already_is_not_written_again(place: Place) -> None:
    async def story() -> None:
        own = place.own()
        await own.publish()
        assert '- "default/a"' in place.file().read_text()
        place.file().unlink()
        await own.publish()
        assert not place.file().exists()
        place.names.add(B)
        await own.publish()
        assert '- "default/b"' in place.file().read_text()

    asyncio.run(story())


def test_nothing_is_healed_before_the_first_publication(place: Place) -> None:
    asyncio.run(place.own().heal())
    assert not place.file().exists()


def test_what_somebody_changed_is_written_again_and_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        own = place.own()
        await own.publish()
        good = place.file().read_text()
        await own.heal()
        assert caplog.text == ""
        place.file().write_text("")
        await own.heal()
        assert place.file().read_text() == good
        assert "had been changed by somebody else" in caplog.text

    asyncio.run(story())


def test_only_what_the_mesh_state_has_is_compared(place: Place) -> None:
    """A publication may name what the mesh state has no more: that is not a change of somebody else's."""

    async def story() -> None:
        own = place.own()
        await own.publish()
        place.file().unlink()
        await own.compare(set(), set())
        await own.compare({A}, {A, B})
        assert not place.file().exists()
        await own.compare(set(), {A})
        assert place.file().exists()

    asyncio.run(story())


def test_what_cannot_be_written_is_a_problem_until_it_can(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_what: object) -> bool:
        raise PublicationError("no space left")

    async def story() -> None:
        own = place.own()
        with monkeypatch.context() as patch:
            patch.setattr(publication, "publish", full)
            with pytest.raises(PublicationError):
                await own.publish()
            await own.heal()
            assert [(one.word.value, one.text) for one in own.problems()] == [("not-published", "no space left")]
        await own.heal()
        assert list(own.problems()) == []
        assert place.file().exists()

    asyncio.run(story())


def test_publication_under_a_former_name_is_withdrawn(place: Place) -> None:
    async def story() -> None:
        former = place.own()
        former.remember()
        await former.publish()
        own = place.own(node="renamed")
        own.remember()
        await own.publish()
        await own.withdraw_former()
        assert not place.file().exists()
        assert place.file("renamed").exists()
        assert list(own.problems()) == []

    asyncio.run(story())
