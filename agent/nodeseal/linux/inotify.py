"""inotify(7), and where it does not see everything."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from inotify_simple import INotify

# linux/magic.h, and cifs_fs.h: file systems that other hosts change without inotify seeing it (NFS, SMB, CIFS, SMB2,
# FUSE, Ceph, AFS, 9P, Lustre).
_REMOTE = {0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x65735546, 0x00C36400, 0x5346414F, 0x01021997, 0x0BD00BD0}


def open_inotify() -> INotify | None:
    """None where there is none to be had: absent, or the user's limit is reached."""
    try:
        return INotify(nonblocking=True)
    except OSError:
        return None


def sees_all(directory: Path) -> bool:
    """Whether everything that happens in a directory is told: it is there, and no other host changes it."""
    kind = file_system_type(directory)
    return kind is not None and kind not in _REMOTE


def file_system_type(path: Path) -> int | None:
    """The f_type of statfs(2); None when the path is not there."""
    # struct statfs begins with the type, a word of the machine on every Linux that nodeseal runs on.
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).statfs(os.fsencode(path), buffer) != 0:
        return None
    kind: int = ctypes.c_ulong.from_buffer(buffer).value
    return kind & 0xFFFFFFFF
