"""The service that is measured: a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.authority.fleet import Fleet
from bench.errors import BenchError

_DEADLINE_S = 60.0


@contextmanager
def running_service(fleet: Fleet) -> Iterator[tuple[int, int]]:
    """(its process, its port)"""
    log = fleet.directory / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeseal", "ca", "serve", "--config", str(fleet.config)], stderr=file
        )
    try:
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            text = log.read_text()
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the service does not start: {text}")
            port = re.search(r"listens on 127\.0\.0\.1:(\d+)", text)
            if port is not None and "issues from now on" in text and _has_mesh(process.pid):
                break
            time.sleep(0.1)
        yield process.pid, int(port[1])
    finally:
        process.terminate()
        process.wait()


def _has_mesh(pid: int) -> bool:
    """It has read the mesh state: it does nothing any more."""
    before = cpu_seconds(pid)
    time.sleep(0.5)
    return cpu_seconds(pid) - before < 0.1


def cpu_seconds(pid: int) -> float:
    """What it has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The most that it ever had in memory."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 / 1e6 if match is not None else 0.0


def resident_mb(pid: int) -> float:
    """What it has in memory now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
