"""Mounting BPF file systems, and what is mounted where. Functions here raise OSError."""

from __future__ import annotations

import os
from pathlib import Path

from nodeseal.linux.libc import LIBC, checked

_MNT_DETACH = 2


def mount_bpf(path: Path) -> None:
    """Mount a new BPF file system, for root only."""
    checked(LIBC.mount(b"nodeseal", os.fsencode(path), b"bpf", 0, b"mode=0700"))


def unmount(path: Path) -> None:
    """Take a mount off; what still uses it keeps it until it is done."""
    checked(LIBC.umount2(os.fsencode(path), _MNT_DETACH))


def mount_points(kind: str, process: str = "self") -> list[Path]:
    """Where file systems of this kind are mounted, in the order of mounting, as this process sees it, or another one,
    which is given by its pid.
    """
    found = []
    for line in Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines():
        # proc_pid_mountinfo(5): "36 35 98:0 /root /mount/point options [optional]... - type source options"
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] == kind:
            # Space, tab, newline and backslash are written in octal.
            raw = left.split(" ")[4]
            for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                raw = raw.replace(code, character)
            found.append(Path(raw))
    return found
