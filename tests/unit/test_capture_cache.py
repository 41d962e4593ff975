"""Compiled BPF programs that are kept for the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.capture.bpf import cache, sources
from nodeseal.capture.bpf.compile import Compiled, MapShape, ProgramCode
from nodeseal.capture.errors import CaptureError

COMPILED = Compiled({"f": ProgramCode(b"12345678", {0: "m"})}, {"m": MapShape(1, 4, 8, 16, 0)})


def never() -> Compiled:
    raise CaptureError("compiled again")


def test_second_start_does_not_compile(tmp_path: Path) -> None:
    assert cache.load_or_compile(tmp_path, lambda: COMPILED) == COMPILED
    assert cache.load_or_compile(tmp_path, never) == COMPILED


@pytest.mark.parametrize("place", ["nodeseal.h", "lib/counters.h"])
def test_changed_sources_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    header = tmp_path / "bpf" / place
    header.parent.mkdir(parents=True)
    header.write_text("#define A 1\n")
    monkeypatch.setattr(sources, "source_directory", lambda: tmp_path / "bpf")
    cache.load_or_compile(tmp_path, lambda: COMPILED)
    cache.load_or_compile(tmp_path, never)
    header.write_text("#define A 2\n")
    with pytest.raises(CaptureError, match="compiled again"):
        cache.load_or_compile(tmp_path, never)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"compiled_from": "x", "compiled": {}}'])
def test_damaged_file_is_made_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / cache.FILE_NAME
    path.write_text(text.replace('"x"', f'"{cache.fingerprint()}"'))
    path.chmod(0o600)
    assert cache.load_or_compile(tmp_path, lambda: COMPILED) == COMPILED
    assert cache.load_or_compile(tmp_path, never) == COMPILED


def test_file_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    cache.load_or_compile(tmp_path, lambda: COMPILED)
    path = tmp_path / cache.FILE_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o620)
    with pytest.raises(CaptureError, match="compiled again"):
        cache.load_or_compile(tmp_path, never)


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache.load_or_compile(tmp_path / "elsewhere", lambda: COMPILED)
    (tmp_path / cache.FILE_NAME).symlink_to(tmp_path / "elsewhere" / cache.FILE_NAME)
    with pytest.raises(CaptureError, match="compiled again"):
        cache.load_or_compile(tmp_path, never)
