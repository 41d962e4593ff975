"""Mounting BPF file systems, and what is mounted where. Functions here raise OSError."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nodeseal.linux.libc import LIBC, checked

_MNT_DETACH = 2


def mount_bpf(path: Path) -> None:
    """Mount a new BPF file system, for root only."""
    checked(LIBC.mount(b"nodeseal", os.fsencode(path), b"bpf", 0, b"mode=0700"))


def unmount(path: Path) -> None:
    """Take a mount off; what still uses it keeps it until it is done."""
    checked(LIBC.umount2(os.fsencode(path), _MNT_DETACH))


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of proc_pid_mountinfo(5)."""

    point: Path
    kind: str
    root: str
    """Which part of the file system: "/" is all of it, "/../.." too, as seen from inside a cgroup namespace."""
    device: int
    """As stat(2) has it."""
    options: tuple[str, ...]
    super_options: tuple[str, ...]


def mounts(kind: str, process: str = "self") -> list[Mount]:
    """What is mounted of this kind of file system, as this process sees it, or another one, which is given by its pid.
    Those that show most of a file system come first; then it is the order of mounting."""
    found = []
    for line in Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines():
        # "36 35 98:0 /root /mount/point options [optional]... - type source options"
        left, _, right = line.partition(" - ")
        its_kind, _source, super_options = right.split(" ", 2)
        if its_kind == kind:
            _id, _parent, device, root, point, options, *_ = left.split(" ")
            major, minor = map(int, device.split(":"))
            found.append(
                Mount(
                    Path(_text(point)),
                    kind,
                    _text(root),
                    os.makedev(major, minor),
                    tuple(options.split(",")),
                    tuple(super_options.split(",")),
                )
            )
    return sorted(found, key=_hidden)


def mount_points(kind: str, process: str = "self") -> list[Path]:
    """Where: see mounts()."""
    return [mount.point for mount in mounts(kind, process)]


def _hidden(mount: Mount) -> tuple[int, int]:
    """How much of the file system it does not show."""
    parts = [part for part in mount.root.split("/") if part]
    above = sum(part == ".." for part in parts)
    return -above, len(parts) - above


def _text(raw: str) -> str:
    """Space, tab, newline and backslash are written in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        raw = raw.replace(code, character)
    return raw
