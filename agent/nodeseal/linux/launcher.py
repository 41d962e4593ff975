"""Starts a program in cgroups and in a root directory of its own. Run by path, with nothing of nodeseal's to import:

    python -I -S launcher.py '{"cgroups": [...], "root": "/var/lib/...", "binds": [...], "ready_fd": 7,
                               "command": [...], "environment": {...}}'

It is a process of its own because the agent has threads: between fork and exec of such a process hardly anything may be
called. The pid stays the same, for it ends in the program's exec.

The root directory becomes the root of a mount namespace, read-only. `binds` are the directories of the former root that
the program sees at the same path; what is mounted in them later appears there as well. /proc and /dev are new.
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 32, 4096, 16384, 1 << 19
_MNT_DETACH = 2
_DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
"""Minor numbers; the major one is 1 (Documentation/admin-guide/devices.txt)."""

_libc = ctypes.CDLL(None, use_errno=True)


def main(text: str) -> None:
    """Does not return."""
    asked = json.loads(text)
    doing = "join its cgroups"
    try:
        for path in asked["cgroups"]:
            Path(path).write_text("0", encoding="ascii")
        if asked["root"]:
            doing = "enter its root directory"
            _enter(asked["root"], asked["binds"])
        doing = "run " + asked["command"][0]
        os.execve(asked["command"][0], asked["command"], asked["environment"])  # noqa: S606  (this is what it is for)
    except OSError as error:
        line = f"cannot {doing}: {error.filename or ''} {error.strerror}".replace("  ", " ")
        os.write(asked["ready_fd"], line.encode())
        sys.exit(1)


def _enter(root: str, binds: list[str]) -> None:
    _call(_libc.unshare(_CLONE_NEWNS), "unshare")
    # What is mounted on the node later comes in, and nothing goes out.
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    _mount(root, root, None, _MS_BIND)
    for path in ("/proc", "/dev", *binds):
        Path(root + path).mkdir(parents=True, exist_ok=True)
    _mount("proc", root + "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("tmpfs", root + "/dev", "tmpfs", _MS_NOSUID | _MS_NOEXEC, "size=64k,mode=755")
    before = os.umask(0)
    for name, minor in _DEVICES.items():
        os.mknod(f"{root}/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(1, minor))
    os.umask(before)
    for path in binds:
        _mount(path, root + path, None, _MS_BIND | _MS_REC)
    _mount(None, root, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID)
    os.chdir(root)
    # The former root comes to lie on the new one, and is taken off (pivot_root(2)).
    here = os.fsencode(".")
    _call(_libc.pivot_root(here, here), "pivot_root")
    _call(_libc.umount2(here, _MNT_DETACH), "umount2")
    os.chdir("/")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [os.fsencode(text) if text is not None else None for text in (source, target, kind, data)]
    _call(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), target)


def _call(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    main(sys.argv[1])
