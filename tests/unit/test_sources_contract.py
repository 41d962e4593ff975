"""What the agent may expect of a source, whatever kind it is of."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from nodeseal.local import generations
from nodeseal.mesh.model import Mesh, Phase
from nodeseal.mesh.trust import Trust
from nodeseal.sources.source import ClaimError, Concern, MeshStateError, PublicationError, Source
from support.agent_fakes import workload
from support.mesh_places import KINDS, MeshPlace, place_of
from support.source_changes import following

A = workload("a", None, addresses=(IPv4Address("10.0.0.1"),))
B = workload("b", None, node="node2", addresses=(IPv4Address("10.0.0.2"),))
TRUST = Trust(frozenset({"1" * 32}), "1" * 32)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> MeshPlace:
    return place_of(request.param, tmp_path)


def phases(item: Mesh | MeshStateError) -> dict[str, Phase]:
    assert isinstance(item, Mesh), item
    return {name.name: one.phase for name, one in item.workloads.items()}


def test_first_item_is_the_present_state_and_each_change_is_another(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        place.put(A, B)
        async with following(place.source("node1", tmp_path)) as item:
            assert phases(await item()) == {"a": Phase.ABSENT, "b": Phase.ABSENT}
            place.put(A)
            assert phases(await item()) == {"a": Phase.ABSENT}

    asyncio.run(story())


def test_without_any_state_the_first_item_says_what_is_wrong(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        async with following(place.source("node1", tmp_path)) as item:
            error = await item()
            assert isinstance(error, MeshStateError)
            assert not error.used
            assert [problem.concern for problem in error.problems] == [Concern.STATE]
            place.put(A)
            assert phases(await item()) == {"a": Phase.ABSENT}
        with pytest.raises(MeshStateError):
            await place_of_nothing(place).load()

    def place_of_nothing(kind: MeshPlace) -> Source:
        (tmp_path / "empty").mkdir()
        return place_of(kind.kind, tmp_path / "empty").source("node1", tmp_path)

    asyncio.run(story())


def test_what_one_node_publishes_the_others_see(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        place.put(A, B)
        one, two = (place.source(node, tmp_path / node) for node in ("node1", "node2"))
        async with following(one) as item:
            await item()
            assert await two.publish([B], TRUST)
            assert phases(await item()) == {"a": Phase.ABSENT, "b": Phase.ENROLLED}
            assert one.publishers == {"node2": TRUST}
            assert phases(await one.load())["b"] is Phase.ENROLLED
            assert await two.withdraw() is not None
            assert phases(await item()) == {"a": Phase.ABSENT, "b": Phase.ABSENT}
            assert one.publishers == {}

    asyncio.run(story())


def test_publishing_the_same_again_writes_nothing(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        source = place.source("node1", tmp_path)
        assert await source.publish([A, A])
        assert not await source.publish([A])
        assert await source.publish([A], TRUST)
        assert await source.publish([])
        assert place.published("node1") == set()

    asyncio.run(story())


def test_workload_is_enrolled_by_the_word_of_its_own_node_only(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        place.put(A, B)
        await place.source("node1", tmp_path).publish([A, B, workload("unknown", None)])
        async with following(place.source("node2", tmp_path)) as item:
            assert phases(await item()) == {"a": Phase.ENROLLED, "b": Phase.ABSENT}
            error = await item()
            assert isinstance(error, MeshStateError)
            assert error.used
            assert [problem.concern for problem in error.problems] == [Concern.PUBLICATION]
            await place.source("node1", tmp_path).publish([A])
            # The same state again: nothing is wrong with it any more.
            assert phases(await item()) == {"a": Phase.ENROLLED, "b": Phase.ABSENT}

    asyncio.run(story())


def test_publication_that_fails_is_one_line(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        source = place.source("node1", tmp_path)
        with place.failing("no space left"), pytest.raises(PublicationError, match=r"^.*no space left$"):
            await source.publish([A])
        assert await source.publish([A])
        with place.failing("no space left"), pytest.raises(PublicationError, match=r"^.*no space left$"):
            await source.withdraw()
        assert place.published("node1") == {"default/a"}

    asyncio.run(story())


def test_withdrawing_what_is_not_there_is_harmless(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        for _time in range(2):
            assert await place.source("node1", tmp_path).withdraw() is None

    asyncio.run(story())


def test_node_belongs_to_one_agent_at_a_time(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        first, second = (place.source("node1", tmp_path / name) for name in ("a", "b"))
        claim = await first.claim()
        assert list(first.verify()) == []
        (why,) = second.verify()
        assert "another agent" in why
        with pytest.raises(ClaimError, match="another agent"):
            await second.claim()
        other = await place.source("node2", tmp_path / "b").claim()
        await other.release()
        await claim.release()
        await (await second.claim()).release()

    asyncio.run(story())


def test_node_stays_with_the_run_directory_in_which_something_is_left(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        first, second = (place.source("node1", tmp_path / name) for name in ("a", "b"))
        (tmp_path / "a").mkdir()
        await (await first.claim()).release()
        generations.lock_path(tmp_path / "a", 1).write_text("1\n")
        with pytest.raises(ClaimError, match=f"in use by .*{tmp_path / 'a'}"):
            await second.claim()
        await (await first.claim()).release()
        # Cleaned up: whoever comes may have it.
        generations.lock_path(tmp_path / "a", 1).unlink()
        await (await second.claim()).release()

    asyncio.run(story())


def test_publication_of_another_agent_is_not_withdrawn(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        first, second = (place.source("node1", tmp_path / name) for name in ("a", "b"))
        claim = await first.claim()
        await first.publish([A])
        assert await second.withdraw() is None
        # The claim that is held tells, whatever the run directory is called.
        assert await place.source("node1", tmp_path / "a").withdraw() is None
        await claim.release()
        assert await second.withdraw() is None
        assert place.published("node1") == {"default/a"}
        assert await first.withdraw() is not None
        assert place.published("node1") is None

    asyncio.run(story())


def test_failed_start_leaves_the_node_to_whoever_had_it(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        await (await place.source("node1", tmp_path / "a").claim()).release(undo=True)
        await (await place.source("node1", tmp_path / "b").claim()).release(undo=True)
        (tmp_path / "a").mkdir()
        generations.lock_path(tmp_path / "a", 1).write_text("1\n")
        await (await place.source("node1", tmp_path / "b").claim()).release()

    asyncio.run(story())


def test_source_is_found_again_by_its_reference(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        source = place.source("node1", tmp_path)
        await source.publish([A])
        noted = json.loads(json.dumps(dict(source.reference())))
        again = place.source_at(noted, tmp_path)
        assert (again.node, again.reference(), again.describe()) == ("node1", noted, source.describe())
        assert await again.withdraw() is not None
        assert place.published("node1") is None

    asyncio.run(story())


@pytest.mark.parametrize("noted", [{}, {"carrier": "pigeon"}, {"directory": "/mesh"}])
def test_reference_that_no_source_gave_is_refused(place: MeshPlace, tmp_path: Path, noted: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no source of the mesh state is known by"):
        place.source_at(noted, tmp_path)


def test_description_is_one_line_each(place: MeshPlace, tmp_path: Path) -> None:
    found = place.source("node1", tmp_path).describe()
    assert str(found) == found.state
    for text in (found.state, found.publications, found.sharing):
        assert text == " ".join(text.split()) != ""


def test_changed_workload_is_a_change(place: MeshPlace, tmp_path: Path) -> None:
    async def story() -> None:
        place.put(A, B)
        async with following(place.source("node1", tmp_path)) as item:
            await item()
            place.put(A, replace(B, service_account="other"))
            seen = await item()
            assert isinstance(seen, Mesh)
            assert seen.workloads[B.key].service_account == "other"

    asyncio.run(story())
