"""What the agent does to cores that come and go at the same moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from nodeseal.cores import place
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.linux import cgroup_hierarchies
from nodeseal.linux.cgroup_hierarchies import Hierarchy
from nodeseal.local.run_directory import CORE_PLACE
from support.agent_fakes import until


async def nothing() -> None:
    pass


def test_cgroup_of_a_core_that_is_started_while_a_dead_ones_goes_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup_hierarchies, "hierarchies", lambda: [Hierarchy(tmp_path, unified=False)])
    (tmp_path / CORE_PLACE).write_text(json.dumps({"image_directory": None}))
    cgroups = tmp_path / place.parent_of(tmp_path).lstrip("/")
    tidy = place.tidy

    def meanwhile(run_dir: Path, running: Iterable[int]) -> list[str]:
        (cgroups / "core-5").mkdir()
        return tidy(run_dir, running)

    monkeypatch.setattr(place, "tidy", meanwhile)

    async def story() -> None:
        supervisor = CoreSupervisor(tmp_path, None, on_start=nothing, on_change=lambda: None)  # type: ignore[arg-type]
        supervisor._generation = 4
        for name in ("core-3", "core-4"):
            (cgroups / name).mkdir(parents=True)
        tidying = asyncio.create_task(supervisor._keep_tidy())
        await until(lambda: not (cgroups / "core-3").exists())
        tidying.cancel()

    asyncio.run(story())
    assert {path.name for path in cgroups.iterdir()} == {"core-4", "core-5"}
