"""A compiler that does not come to its end says nothing about the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.backends.iptables import IptablesBackend
from nodeseal.capture.bpf import runtime
from nodeseal.capture.bpf.compile import Compiled, compile_in_child
from nodeseal.capture.errors import CaptureError, CompilingInterruptedError
from nodeseal.capture.node import NodeCapture
from nodeseal.linux import capabilities, cgroups


def interpreter(directory: Path, script: str) -> str:
    """A program in the place of Python."""
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o700)
    return str(path)


def test_killed_compiler_is_told_by_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, "kill -KILL $$"))
    with pytest.raises(CompilingInterruptedError, match="ended by SIGKILL: start the agent again"):
        compile_in_child(tmp_path)


def test_compiler_that_fails_is_not_taken_for_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, "echo 'no such helper' >&2; exit 1"))
    with pytest.raises(CaptureError, match="no such helper") as failure:
        compile_in_child(tmp_path)
    assert not isinstance(failure.value, CompilingInterruptedError)


@pytest.mark.parametrize("failure", [CompilingInterruptedError("killed"), CaptureError("no such helper")])
def test_auto_falls_back_for_what_the_machine_lacks_only(
    failure: CaptureError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiling() -> Compiled:
        raise failure

    monkeypatch.setattr(capabilities, "check_privileges", lambda **_: None)
    monkeypatch.setattr(cgroups, "check_cgroup", lambda path: path)
    monkeypatch.setattr(runtime, "_compile", compiling)
    monkeypatch.setattr(IptablesBackend, "prepare", lambda *_: None)
    capture = NodeCapture(tmp_path, tmp_path, Choice.AUTO)
    if isinstance(failure, CompilingInterruptedError):
        with pytest.raises(CompilingInterruptedError):
            capture.prepare()
        assert capture.backend is None
    else:
        capture.prepare()
        assert (capture.backend, capture.why) == ("iptables", "no such helper")
