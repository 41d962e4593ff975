"""The cgroups of a cluster: one for each node, in every hierarchy of the host.

A node's cgroup namespace begins there, and the node mounts every hierarchy anew: what it sees as the top is its own.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError

_REMOVE_SECONDS = 90.0
_INHERITED = ("cpuset.cpus", "cpuset.mems")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One as the host has it mounted. `options`: for mount(8)."""

    path: Path
    kind: str
    options: str


def hierarchies(mounts: str) -> list[Hierarchy]:
    """Those of the text of /proc/mounts, below /sys/fs/cgroup. Raises ClusterError where there is only cgroup v2."""
    found = []
    for line in mounts.splitlines():
        _, path, kind, options, *_ = line.split()
        if kind in ("cgroup", "cgroup2") and path.startswith("/sys/fs/cgroup"):
            own = [] if kind == "cgroup2" else [one for one in options.split(",") if _is_controller(one)]
            if any(one.startswith("name=") for one in own):
                own.insert(0, "none")
            found.append(Hierarchy(Path(path), kind, ",".join(own)))
    if not any(one.kind == "cgroup" for one in found):
        raise ClusterError("this machine has no cgroup v1 controllers, which a node's kubelet gets here; use a VM")
    return found


def of_host() -> list[Hierarchy]:
    """As hierarchies(). Raises ClusterError."""
    return hierarchies(Path("/proc/mounts").read_text())


def make(cgroup: str) -> list[Path]:
    """Makes it in every hierarchy; the files through which a process enters them. Raises ClusterError."""
    entrances = []
    for one in of_host():
        path = one.path
        for part in cgroup.strip("/").split("/"):
            parent, path = path, path / part
            try:
                path.mkdir(exist_ok=True)
                # A cpuset takes no process before it says on which processors.
                for name in _INHERITED:
                    if (path / name).exists() and not (path / name).read_text().strip():
                        (path / name).write_text((parent / name).read_text())
            except OSError as error:
                raise ClusterError(f"cannot make the cgroup {path}: {error.strerror}") from error
        entrances.append(path / "cgroup.procs")
    return entrances


def remove(cgroup: str) -> None:
    """Removes it with those below it, when all that was in them has ended. Raises ClusterError when one stays."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    for one in of_host():
        top = one.path / cgroup.strip("/")
        while top.is_dir():
            for path in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                top.rmdir()
                break
            if time.monotonic() > deadline:
                raise ClusterError(f"cannot remove the cgroup {top}; what still runs in it?")
            time.sleep(0.02)


def _is_controller(option: str) -> bool:
    return option not in ("rw", "ro", "relatime", "nosuid", "nodev", "noexec", "xattr")
