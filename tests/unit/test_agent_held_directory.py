"""The run directory as the agent finds it, and makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.daemon.held_directory import HeldDirectory


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("names", [[], ["agent-4711.lock"]])
def test_empty_directory_that_a_kubelet_has_made_is_closed(tmp_path: Path, names: list[str]) -> None:
    directory = tmp_path / "nodeseal"
    directory.mkdir(mode=0o755)
    for name in names:
        (directory / name).touch()
    with HeldDirectory(directory).let_go_at_the_end():
        assert mode(directory) == 0o700


@pytest.mark.parametrize("name", ["agent.lock", "something-else"])
def test_directory_that_is_in_use_stays_as_it_is(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "nodeseal"
    directory.mkdir(mode=0o755)
    (directory / name).touch()
    with HeldDirectory(directory).let_go_at_the_end():
        assert mode(directory) == 0o755
