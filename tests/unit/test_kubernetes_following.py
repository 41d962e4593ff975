"""What is done all the time about a cluster goes on, whatever happens to a part of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from nodeseal.kubernetes.api import Api
from nodeseal.sources.kubernetes import following as module
from nodeseal.sources.kubernetes.following import Following, Settings


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
