"""What is done all the time about a cluster goes on, whatever happens to a part of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from nodeseal.kubernetes.api import Api
from nodeseal.kubernetes.objects import Meta, Pod
from nodeseal.sources.kubernetes import following as module
from nodeseal.sources.kubernetes import saved
from nodeseal.sources.kubernetes.cluster import Cluster
from nodeseal.sources.kubernetes.following import Following, Settings
from nodeseal.sources.kubernetes.own_pods import Held
from support.agent_fakes import until


@pytest.mark.parametrize(
    ("whole", "part", "others"),
    [
        ("run", "_renewals.run", ("cluster.run", "_check_places")),
        ("run", "_check_places", ("cluster.run", "_renewals.run")),
        ("serve", "events.run", ("cluster.keep", "publisher.run", "_keep_held")),
        ("serve", "publisher.run", ("cluster.keep", "events.run", "_keep_held")),
    ],
)
def test_part_that_fails_is_begun_again_and_ends_no_other(
    whole: str, part: str, others: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.001)
    begun: list[str] = []

    async def story() -> None:
        settings = Settings("cluster.local", "nodeseal-system", "node1", tmp_path, None)
        following = Following(cast("Api", object()), settings)
        again = asyncio.Event()

        def replaced(name: str) -> None:
            async def work() -> None:
                begun.append(name)
                if name == part and begun.count(part) < 3:
                    raise RuntimeError("slipped")
                if name == part:
                    again.set()
                await asyncio.sleep(3600)

            owner, _, method = name.rpartition(".")
            monkeypatch.setattr(getattr(following, owner) if owner else following, method, work)

        for name in (part, *others):
            replaced(name)
        running = asyncio.create_task(getattr(following, whole)())
        done, _ = await asyncio.wait(
            [running, waiting := asyncio.create_task(again.wait())], return_when="FIRST_COMPLETED"
        )
        assert done == {waiting}
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(story())
    assert sorted(begun) == sorted((part, part, part, *others))


def test_settings_of_pods_that_went_while_no_agent_ran_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.001)
    fresh = False
    monkeypatch.setattr(Cluster, "fresh", property(lambda _self: fresh))
    held = [Held(uid, Meta("shop"), Meta(uid, "shop", uid)) for uid in ("here", "gone")]
    saved.save(tmp_path, "held", held, "")

    def kept() -> set[str]:
        found = saved.load(tmp_path, "held", Held)
        return {one.uid for one in found.items} if found is not None else set()

    async def story() -> None:
        nonlocal fresh
        settings = Settings("cluster.local", "nodeseal-system", "node1", tmp_path, None)
        following = Following(cast("Api", object()), settings)
        await following.restore()
        cast("Any", following.pods.pods)["shop", "here"] = Pod(held[0].pod)
        keeping = asyncio.create_task(following._keep_held())
        await asyncio.sleep(0.01)
        assert kept() == {"here", "gone"}, "the API server may be about to tell of it"
        fresh = True
        await until(lambda: kept() == {"here"})
        keeping.cancel()

    asyncio.run(story())
