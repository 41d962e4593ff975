"""What the figures were measured on and with."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.build import CHECKOUT
from bench.peers.peer import Peer, first_line


def describe_machine(peers: Sequence[Peer], congestion_control: str | None) -> dict[str, Any]:
    """For bench.json's "machine"."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "congestion_control": congestion_control,
        "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "gcc": first_line(["gcc", "--version"]),
        "versions": {peer.name: peer.version() for peer in peers},
        "threads": {peer.name: peer.threads for peer in peers},
    }


def _commit() -> str:
    """The checkout's commit, with "+" when something differs from it."""
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(CHECKOUT), *argv], capture_output=True, text=True, check=True).stdout
            for argv in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+" if changes.strip() else "")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
