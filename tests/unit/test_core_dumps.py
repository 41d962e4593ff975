"""A process that holds private keys and aborts: the kernel writes nothing of it anywhere, whatever the limits are."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nodeseal_lab.processes import child_environment

MOST = resource.getrlimit(resource.RLIMIT_CORE)[1]
PLAIN = "import sys; print('ready', flush=True); sys.stdin.read()"
FORBIDDING = f"from nodeseal.linux.hardening import forbid_dumps; forbid_dumps(); {PLAIN}"
CORE = "import sys; from nodeseal.splice.process import main; sys.exit(main(sys.argv[1:]))"
WITHOUT_LIMIT = "import resource; resource.setrlimit = lambda *_: None; "
"""Before others: the process keeps the limit that it was started with, and only PR_SET_DUMPABLE is left."""


def dumped(command: list[str], directory: Path) -> bool:
    """Starts the command in the directory with the highest limit for core dumps, and has it abort; whether the
    kernel says that it was dumped."""
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (MOST, MOST)),
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGABRT)
    _pid, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdin.close()
    process.stdout.close()
    assert process.returncode == -signal.SIGABRT
    return os.WCOREDUMP(status)


@pytest.mark.parametrize("before", ["", WITHOUT_LIMIT], ids=["as it is", "without its limit"])
def test_core_that_aborts_is_not_dumped(tmp_path: Path, before: str) -> None:
    run_dir, where = tmp_path / "run", tmp_path / "where"
    run_dir.mkdir(mode=0o700)
    where.mkdir()
    arguments = ["--run-dir", str(run_dir), "--trust-domain", "example.org", "--ready-fd", "1"]
    assert not dumped([sys.executable, "-c", before + CORE, *arguments], where)
    assert list(where.iterdir()) == []


@pytest.mark.parametrize("before", ["", WITHOUT_LIMIT], ids=["as it is", "without its limit"])
def test_process_that_forbids_dumps_is_not_dumped(tmp_path: Path, before: str) -> None:
    """What an agent does to itself first."""
    assert not dumped([sys.executable, "-c", before + FORBIDDING], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_process_that_does_not_is_dumped(tmp_path: Path) -> None:
    """Else the others would show nothing."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    assert dumped([sys.executable, "-c", PLAIN], tmp_path) == (pattern != "" and MOST != 0)
