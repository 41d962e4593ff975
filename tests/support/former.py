"""Versions of nodeseal from git, built beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_BUILD_SECONDS = 300
_PARTS = ("agent", "bpf", "cext", "setup.py", "pyproject.toml", "README.md", "LICENSE")
_LAB = "lab"
"""In a folder of its own, since there is one."""


def is_there(commit: str) -> bool:
    """Whether the git history here has the commit."""
    found = subprocess.run(["git", "-C", CHECKOUT, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True)
    return found.returncode == 0


def build(commit: str, directory: Path) -> dict[str, str]:
    """Builds the commit's version in `directory`; the environment in which `nodeseal` is that one."""
    listed = subprocess.run(["git", "-C", CHECKOUT, "ls-tree", commit, _LAB], capture_output=True, check=True)
    parts = (*_PARTS, _LAB) if listed.stdout else _PARTS
    archive = subprocess.run(
        ["git", "-C", CHECKOUT, "archive", commit, *parts], capture_output=True, check=True, timeout=60
    )
    subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True, timeout=60)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=_BUILD_SECONDS)
    environment = {**os.environ, "PYTHONPATH": f"{directory / 'agent'}:{directory / _LAB}"}
    check = [sys.executable, "-c", "import nodeseal, nodeseal._core; print(nodeseal.__file__)"]
    found = subprocess.run(check, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(directory))
    return environment
