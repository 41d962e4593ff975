"""Writes what an image is built with, each by its digests: `python -m tools.image_requirements`.

pip chooses the newest versions that pyproject.toml allows, for Debian trixie's Python, on both machine types. To be run
when a dependency is to be newer, and looked through before it is committed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / "deploy" / "image"
PYTHON = "3.13"
MACHINES = ("x86_64", "aarch64")
GLIBC = (17, 26, 28, 34)  # 2.x: what wheels ask for, at most trixie's 2.41


def main() -> int:
    """The exit status."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name, wanted in (
        ("requirements.txt", project["project"]["dependencies"]),
        ("requirements-build.txt", [*project["build-system"]["requires"], "build", "wheel"]),
    ):
        (DIRECTORY / name).write_text(_pinned(wanted), encoding="utf-8")
    return 0


def _pinned(wanted: list[str]) -> str:
    digests: dict[str, set[str]] = {}
    for machine in MACHINES:
        with tempfile.TemporaryDirectory() as directory:
            platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC]
            platforms.append(f"--platform=manylinux2014_{machine}")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", directory]
            command += ["--python-version", PYTHON, "--implementation", "cp", *platforms, *wanted]
            subprocess.run(command, check=True)
            for wheel in Path(directory).iterdir():
                name, version, *_ = wheel.name.split("-")
                line = f"{name.replace('_', '-').lower()}=={version}"
                digests.setdefault(line, set()).add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    lines = ["# Made by `python -m tools.image_requirements`."]
    for line, found in sorted(digests.items()):
        lines.append(" \\\n    ".join([line, *(f"--hash=sha256:{digest}" for digest in sorted(found))]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
