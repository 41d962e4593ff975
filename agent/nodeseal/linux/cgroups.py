"""The cgroup v2 tree: where it is, and the cgroups in it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nodeseal.linux.errors import LinuxError
from nodeseal.linux.mounts import mount_points
from nodeseal.linux.namespace import NAMED


class CgroupTree:
    """The tree with this root. Paths in it are as /proc/PID/cgroup has them: "/system.slice/a.service"."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def directory(self, path: str) -> Path:
        """The cgroup of this path."""
        return self._root / path.lstrip("/")

    def has(self, path: str) -> bool:
        """Whether there is such a cgroup now."""
        return self.directory(path).is_dir()

    def nearest(self, path: str) -> Path:
        """The directory in which the next part of a cgroup's path is, or would be made."""
        parent = self.directory(path).parent
        while not parent.is_dir() and parent != self._root:
            parent = parent.parent
        return parent

    def numbers(self, path: str) -> frozenset[int]:
        """The kernel's numbers of a cgroup and of those below it; none when it is not there."""
        found = set()
        for directory, _, _ in os.walk(self.directory(path)):
            with contextlib.suppress(FileNotFoundError):
                found.add(Path(directory).stat().st_ino)
        return frozenset(found)


def find_cgroup() -> Path:
    """The root of the cgroup v2 tree. Raises LinuxError when none is mounted."""
    found = mount_points("cgroup2")
    if not found:
        raise LinuxError(
            _hidden_cgroup()
            or "no cgroup v2 tree is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified); on a host with "
            "cgroup v1 it may stand beside it"
        )
    return found[0]


def check_cgroup(cgroup: Path) -> Path:
    """The same path. Raises LinuxError when it is not the root of a cgroup v2 tree."""
    roots = mount_points("cgroup2")
    here = f", {roots[0]}" if roots else ""
    if not (cgroup / "cgroup.controllers").is_file():
        hidden = "" if roots else _hidden_cgroup()
        remedy = hidden or f"leave `cgroup` out to have it found, or name the root of the v2 tree{here}"
        raise LinuxError(f"{cgroup} is not a cgroup v2 directory: {remedy}")
    if roots and cgroup.resolve() not in roots:
        # Programs that are attached there see what runs below it, and nothing else.
        raise LinuxError(f"{cgroup} is a part of the cgroup v2 tree: leave `cgroup` out, or name its root{here}")
    return cgroup


def _hidden_cgroup() -> str:
    """What to do when the machine has a cgroup v2 tree and this process has none; "" when the machine has none."""
    try:
        found = mount_points("cgroup2", "1")
    except OSError:
        return ""
    if not found:
        return ""
    # It mounts /sys anew, without what was mounted in it (ip-netns(8)); so does everything that changes mounts.
    own = _named_namespace()
    return (
        f"no cgroup v2 tree is mounted in the mount namespace of this process, though the machine has one at "
        f"{found[0]}: 'ip netns exec' hides it; say 'nsenter --net={own}' in its place"
    )


def _named_namespace() -> Path:
    """The name of the network namespace that this process is in, as `ip netns` has it, or what stands for one."""
    with contextlib.suppress(OSError):
        own = Path("/proc/self/ns/net").stat().st_ino
        for path in sorted(NAMED.iterdir()):
            if path.stat().st_ino == own:
                return path
    return NAMED / "NAME"
