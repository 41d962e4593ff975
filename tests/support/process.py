"""The processes that tests start and end: nodeseal's command line, and any other by its id."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nodeseal_lab import agents
from nodeseal_lab.processes import child_environment
from support.patience import PATIENCE


def nodeseal(*arguments: str, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `nodeseal ARGUMENTS` as a user does, output captured as text. `options` as for subprocess.run; `env` is
    added to the environment."""
    environment = child_environment() | options.pop("env", {})
    prefix: Sequence[str] = options.pop("prefix", ())
    return subprocess.run(
        [*prefix, sys.executable, "-m", "nodeseal", *arguments],
        **{"capture_output": True, "text": True, "check": False, "timeout": timeout, "env": environment, **options},
    )


def end_process(pid: int, number: int = signal.SIGKILL) -> None:
    """Signals a process and waits until all its threads have ended, and with them its locks and sockets are gone.

    The state Z in /proc/PID/stat comes earlier: it tells of the main thread only."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, number)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            pytest.fail(f"process {pid} does not end after signal {number}")
    finally:
        os.close(process)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def nodeseal_command() -> list[str]:
    """How to run nodeseal's command line when it is to bring up a lab: the agents have the tests' settings then."""
    return [sys.executable, str(Path(__file__).with_name("command.py"))]


def nodeseal_environment() -> dict[str, str]:
    """For nodeseal_command(): the agents have the BPF programs that the tests' own labs have (support/agent.py), which
    saves each of them a compilation."""
    return child_environment() | {"NODESEAL_TEST_AGENT": json.dumps(list(agents.AGENT_COMMAND))}
