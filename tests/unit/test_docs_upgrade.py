"""docs/upgrade-on-kubernetes.md, compared with the commands, the chart and the story that follows it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.upgrades import upgrades
from cluster.upgrades.page import INSTALL, UPGRADE, commands
from nodeseal.cli.manifests import manifests
from support.command_line import parsed

STORY = Path(upgrades.__file__).read_text()


def told(page: Path) -> list[str]:
    """Every command of a page."""
    found = []
    for heading in re.findall(r"^##+ (.*)$", page.read_text(), re.MULTILINE):
        try:
            found += commands(page, heading)
        except ClusterError:
            continue
    return found


def test_commands_are_those_that_there_are() -> None:
    lines = [line.partition(" | ")[0] for line in told(UPGRADE)]
    own = [line for line in lines if line.startswith("nodeseal ")]
    assert own
    for line in own:
        assert parsed(*shlex.split(line)[1:])
    assert {line.split()[0] for line in lines} == {"nodeseal", "kubectl", "helm"}


def test_values_are_those_of_the_chart() -> None:
    settings = [word for line in told(UPGRADE) for word in re.findall(r"--set (\S+)", line)]
    assert len(settings) >= 5
    for setting in settings:
        key, _, value = setting.partition("=")
        assert list(manifests("nodeseal-system", None, None, (), (f"{key}={value}",)))


def test_story_runs_every_command_of_the_page() -> None:
    """But for those that only look, and installing by kubectl alone, which the story of `make cluster` does."""
    # What the story names: the beginning of a command, in quotes.
    named = set(re.findall(r'"((?:kubectl|helm|nodeseal)(?: [^"{]*)?)"', STORY))
    missing = [line for line in told(UPGRADE) if not any(line.startswith(one) for one in named)]
    elsewhere = ("kubectl -n nodeseal-system get pods", "kubectl -n nodeseal-system logs", "nodeseal install --image")
    assert [line for line in missing if not line.startswith(elsewhere)] == []


@pytest.mark.parametrize("page", [UPGRADE, INSTALL])
def test_section_without_commands_is_told(page: Path) -> None:
    with pytest.raises(ClusterError, match="has no commands under 'Nothing'"):
        commands(page, "Nothing")


def test_command_over_two_lines_is_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("## A\n\n```\none \\\n  --two   # why\n```\n\n### B\n\n```\nthree\n```\n\n## C\n")
    assert commands(page, "A") == ["one --two"]
    assert commands(page, "B") == ["three"]
