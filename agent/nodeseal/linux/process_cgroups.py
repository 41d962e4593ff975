"""Processes by their cgroup, and the network namespaces that they live in.

A cgroup's processes are read where its hierarchy is mounted, whatever the version: asking every process for its cgroup
takes longer the more of them there are. That is for who finds no hierarchy (`all_cgroups`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nodeseal.linux.mounts import mount_points
from nodeseal.linux.namespace import NAMED


@dataclass(frozen=True, slots=True)
class Process:
    """`started`: in the kernel's ticks since the boot; a smaller one is older."""

    pid: int
    started: int
    namespace: int
    """The number of its network namespace (its inode)."""

    @property
    def path(self) -> str:
        """Of its network namespace, as long as it lives."""
        return f"/proc/{self.pid}/ns/net"


def hierarchies() -> list[Path]:
    """Where cgroups are mounted, v2 first. Raises OSError."""
    return [*mount_points("cgroup2"), *mount_points("cgroup")]


def first_processes(cgroup: Path) -> Iterator[Process]:
    """One of each cgroup that is this one or below it, and has any."""
    for directory, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(directory, "cgroup.procs").read_text().splitlines():
                if (found := process(int(line))) is not None:
                    yield found
                    break


def process(pid: int) -> Process | None:
    """None when it is none any more, or cannot be seen from here."""
    try:
        # proc_pid_stat(5): the name in parentheses may hold anything; field 22 is the start.
        text = Path(f"/proc/{pid}/stat").read_bytes()
        started = int(text[text.rindex(b")") + 2 :].split()[19])
        return Process(pid, started, Path(f"/proc/{pid}/ns/net").stat().st_ino)
    except (OSError, ValueError, IndexError):
        return None


def all_cgroups() -> Iterator[tuple[int, str]]:
    """(pid, the text of its /proc/PID/cgroup) of every process."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(path.name), (path / "cgroup").read_text(errors="surrogateescape")


def own_namespace() -> int:
    """The number of this process's network namespace."""
    return Path("/proc/self/ns/net").stat().st_ino


def named_namespaces() -> dict[int, str]:
    """The number of each network namespace that has a name under /run/netns, with its path: it is there for as long as
    the namespace, whichever of its processes end."""
    found = {}
    with contextlib.suppress(OSError), os.scandir(NAMED) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found[entry.stat().st_ino] = entry.path
    return found
