"""Compiled BPF programs that an installation carries; needs bcc, gcc and root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nodeseal.capture import features
from nodeseal.capture.bpf import cache, runtime, shipped, sources
from nodeseal.capture.bpf.compile import Compiled, MapShape, ProgramCode, compile_in_child
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.errors import CaptureError

ROOT = Path(__file__).resolve().parents[2]
COMPILED = Compiled({"f": ProgramCode(b"12345678", {0: "m"})}, {"m": MapShape(1, 4, 8, 16, 0)})


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like that of the package, with sources of its own."""
    shutil.copytree(ROOT / "bpf", tmp_path / "nodeseal" / "bpf")
    monkeypatch.setattr(sources, "source_directory", lambda: tmp_path / "nodeseal" / "bpf")
    return tmp_path / "nodeseal"


def ship(installation: Path, compiled: Compiled) -> None:
    cache.write(installation / shipped.FILE_NAME, shipped._made_of(), compiled, mode=0o644)


def never() -> Compiled:
    raise CaptureError("compiled")


def test_agent_does_not_compile_what_came_with_it(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "compile_in_child", never)
    with pytest.raises(CaptureError, match="compiled"):
        runtime.compile_ahead(tmp_path)
    ship(installation, COMPILED)
    runtime.compile_ahead(tmp_path)
    assert not (tmp_path / cache.FILE_NAME).exists()


def test_what_is_of_other_sources_does_not_count(installation: Path) -> None:
    ship(installation, COMPILED)
    assert shipped.load() == COMPILED
    with (installation / "bpf" / "lib" / "counters.h").open("a") as header:
        header.write("#define OTHER 1\n")
    assert shipped.load() is None


def test_check_needs_no_compiler_then(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "compile_in_child", never)
    ship(installation, COMPILED)
    compiler = next(features._programs())
    assert (compiler.found, compiler.detail) == (True, "none is needed: the programs came compiled")


def test_build_without_any_privilege_makes_the_same(tmp_path: Path) -> None:
    """As in the build of an image: without capabilities, with what stands for bpf(2)."""
    package = tmp_path / "agent"
    shutil.copytree(ROOT / "agent" / "nodeseal", package / "nodeseal", ignore=shutil.ignore_patterns("__pycache__"))
    library = tmp_path / "pretend_bpf.so"
    source = ROOT / "deploy" / "image" / "pretend_bpf.c"
    warnings = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
    subprocess.run(["gcc", "-std=gnu11", "-O2", *warnings, "-shared", "-fPIC", "-o", library, source], check=True)

    def make(**environment: str) -> subprocess.CompletedProcess[str]:
        unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        return subprocess.run(
            [*unprivileged, sys.executable, "-m", "nodeseal.capture.bpf.shipped"],
            env={**os.environ, "PYTHONPATH": str(package), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    refused = make()
    assert refused.returncode == 1
    assert "the kernel refused to create a BPF map" in refused.stderr
    assert make(LD_PRELOAD=str(library)).returncode == 0
    made = cache.read(package / "nodeseal" / shipped.FILE_NAME, shipped._made_of())
    assert made is not None
    there = compile_in_child()
    assert made.maps == there.maps
    assert Programs(made).version == Programs(there).version
