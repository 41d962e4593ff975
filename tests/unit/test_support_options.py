"""`pytest --workers N` and its variable of the environment: what is said, and what agents are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nodeseal.local.config import default_workers
from nodeseal_lab import lab
from nodeseal_lab.plan import Plan
from support.options import WORKERS
from support.settings import lab_settings

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the option had not been given to this run."""
    monkeypatch.delenv(WORKERS.environment, raising=False)


@pytest.mark.parametrize(
    ("option", "variable", "line"),
    [
        (["--workers", "3"], None, "worker threads of a core: 3 (as asked)"),
        ([], "5", "worker threads of a core: 5 (as asked)"),
        (["--workers=3"], "5", "worker threads of a core: 3 (as asked)"),
        ([], None, f"worker threads of a core: {default_workers()} (what an agent chooses here)"),
        (["--workers", "0"], None, "ERROR: --workers: expected a number of threads from 1 to 64, found '0'"),
        ([], "many", f"ERROR: {WORKERS.environment}: expected a number of threads from 1 to 64, found 'many'"),
    ],
    ids=["option", "variable", "option-before-variable", "neither", "bad-option", "bad-variable"],
)
def test_header_says_the_number(
    monkeypatch: pytest.MonkeyPatch, option: list[str], variable: str | None, line: str
) -> None:
    if variable is not None:
        monkeypatch.setenv(WORKERS.environment, variable)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *option]
    result = subprocess.run(
        [*command, "tests/unit/test_mesh_names.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=TESTS.parent,
        env=dict(os.environ),
    )
    assert line in (result.stdout + result.stderr).splitlines()


@pytest.mark.parametrize(
    ("variable", "settings", "workers"),
    [
        (None, None, None),
        ("3", None, 3),
        ("3", {"settle": "2s"}, 3),
        ("3", {"workers": 1}, 1),
        (None, {"workers": 1}, 1),
    ],
    ids=["nothing", "asked", "asked-and-a-setting", "test-before-asked", "test"],
)
def test_agents_of_a_lab_are_given_the_number(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str | None,
    settings: dict[str, object] | None,
    workers: int | None,
) -> None:
    if variable is not None:
        monkeypatch.setenv(WORKERS.environment, variable)
    with lab_settings(settings):
        lab.write_agent_config(
            tmp_path / "agent.yaml", Plan.build("n").node("node1"), mesh=tmp_path / "mesh", ca=str(tmp_path / "ca")
        )
    config = yaml.safe_load((tmp_path / "agent.yaml").read_text())
    assert config["node"] == "node1"
    assert config.get("workers") == workers
