"""`nodeseal lab demo identity` on a real kernel: what it claims holds, and where it does not it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nodeseal_lab.lab import take_down
from nodeseal_lab.namespaces import list_namespaces
from nodeseal_lab.plan import prefix
from support.process import nodeseal_command, nodeseal_environment

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def name() -> Iterator[str]:
    """The name of the demo's lab."""
    name = f"i{os.getpid()}"
    yield name
    take_down(name)


def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False, env=nodeseal_environment())


def test_demo_of_identities_proves_every_step(name: str) -> None:
    argv = [*nodeseal_command(), "lab", "demo", "identity", "--name", name, "-o", "json"]
    result = run(argv)
    report = json.loads(result.stdout)
    assert (report["failure"], result.returncode) == (None, 0)
    assert [step["step"] for step in report["steps"]] == list("abcde")
    assert list_namespaces(prefix(name)) == []


def test_demo_of_identities_fails_loudly_when_a_revocation_does_nothing(name: str) -> None:
    code = (
        f"import sys; sys.path.append({str(TESTS)!r}); from support.settings import lab_settings;"
        "from nodeseal_lab.demo import numbered, scene; from nodeseal_lab.demo.run import run_demo;"
        "numbered._WAIT_SECONDS = 10; does = scene.Scene.does;"
        "scene.Scene.does = lambda self, *words: does(self, *words) if words[0] != 'revoke' else '';"
        f"lab_settings().__enter__(); sys.exit(run_demo({name!r}, story='identity'))"
    )
    result = run([sys.executable, "-c", code])
    failure = result.stdout.partition("FAILED in (c) An identity is revoked\n")[2]
    assert "60 from shipper to pipeline are cut" in failure, result.stdout
    assert result.returncode == 1
    assert list_namespaces(prefix(name)) == []
