"""How far a process raises its own limit of descriptors."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from nodeseal.linux import hardening

SOFT, HARD = 200, 400


class Kernel:
    """setrlimit(2) for a process with or without CAP_SYS_RESOURCE."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, capable: bool) -> None:
        self.limit = (SOFT, HARD)
        self._capable = capable
        monkeypatch.setattr(resource, "getrlimit", lambda _which: self.limit)
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, _which: int, limit: tuple[int, int]) -> None:
        if limit[1] > self.limit[1] and not self._capable:
            raise ValueError("not allowed to raise maximum limit")
        self.limit = limit


def nr_open(directory: Path, text: str) -> Path:
    path = directory / "nr_open"
    path.write_text(text)
    return path


def test_root_gets_what_the_kernel_gives_to_anyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, capable=True)
    assert hardening.raise_descriptor_limit(nr_open(tmp_path, "500\n")) == 500
    assert kernel.limit == (500, 500)


def test_without_the_capability_the_hard_limit_is_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch, capable=False)
    assert hardening.raise_descriptor_limit(nr_open(tmp_path, "500\n")) == HARD
    assert kernel.limit == (HARD, HARD)


@pytest.mark.parametrize("text", ["300\n", "no number\n"])
def test_a_hard_limit_is_never_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    kernel = Kernel(monkeypatch, capable=True)
    assert hardening.raise_descriptor_limit(nr_open(tmp_path, text)) == HARD
    assert kernel.limit == (HARD, HARD)


def test_a_kernel_that_does_not_tell_leaves_the_hard_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, capable=True)
    assert hardening.raise_descriptor_limit(tmp_path / "absent") == HARD
    assert kernel.limit == (HARD, HARD)
