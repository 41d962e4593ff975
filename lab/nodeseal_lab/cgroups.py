"""The cgroups of the lab's host workloads: one below /nodeseal-lab-LAB for each, in the cgroup v2 tree.

What is in them is the lab's: at the end the kernel ends it (cgroup.kill), because a command that `lab exec` has left
behind would keep a cgroup from being removed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from nodeseal.linux.cgroups import find_cgroup
from nodeseal.linux.errors import LinuxError
from nodeseal_lab.errors import LabError
from nodeseal_lab.plan import Plan

_REMOVE_SECONDS = 5.0


def make_cgroups(plan: Plan) -> None:
    """Makes the cgroups of the plan's host workloads. Raises LabError."""
    for pod in plan.pods:
        if pod.cgroup:
            path = directory_of(pod.cgroup)
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LabError(f"cannot make the cgroup {path}: {error.strerror}") from error


def remove_cgroups(name: str) -> None:
    """Removes those of the lab `name`, with what runs in them. Raises LabError when one stays."""
    try:
        top = find_cgroup() / cgroup_of(name).lstrip("/")
    except LinuxError:
        return  # no tree, no cgroups
    if not top.is_dir():
        return
    with contextlib.suppress(OSError):  # before Linux 5.14 there is none
        (top / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _REMOVE_SECONDS
    while top.is_dir():
        for path in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        try:
            top.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"cannot remove the cgroup {top}: {error.strerror}; what still runs in it?") from error
            time.sleep(0.02)


def enter_cgroup(cgroup: str) -> None:
    """Moves this process into a cgroup. Raises LabError."""
    path = directory_of(cgroup) / "cgroup.procs"
    try:
        path.write_text(str(os.getpid()))
    except OSError as error:
        raise LabError(f"cannot enter the cgroup {path.parent}: {error.strerror}") from error


def in_cgroup(cgroup: str, argv: Sequence[str]) -> tuple[str, ...]:
    """The command that runs `argv` in a cgroup, as the same process; in that of its parent if the name is empty. Raises
    LabError."""
    if not cgroup:
        return tuple(argv)
    procs = str(directory_of(cgroup) / "cgroup.procs")
    return ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', procs, *argv)


def directory_of(cgroup: str) -> Path:
    """Where a cgroup is in the file system. Raises LabError when no cgroup v2 tree is mounted."""
    try:
        return find_cgroup() / cgroup.lstrip("/")
    except LinuxError as error:
        raise LabError(str(error)) from error


def cgroup_of(lab: str) -> str:
    """The cgroup that those of a lab are below, as a path in the tree."""
    return f"/nodeseal-lab-{lab}"
