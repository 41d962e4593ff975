"""Files that are replaced as a whole: a reader, and a machine that loses its power, sees the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from nodeseal.linux import directories

_DRAFT = ".nodeseal-"
_DRAFTS = re.compile(re.escape(_DRAFT) + "[a-z0-9_]{8}")


class ChangedMeanwhileError(OSError):
    """Somebody else has written the file since it was read."""


def replace_file(path: Path, data: bytes, mode: int, like: os.stat_result | None = None) -> None:
    """Writes a file of this mode. `like`: of the file that was read; its owner and mode are kept, and so are its
    extended attributes (the label of SELinux, access control lists) where that can be.

    The draft is hidden, beside the file, and has no suffix. Raises ChangedMeanwhileError when `like` is not what is
    there now; OSError.
    """
    descriptor, draft = tempfile.mkstemp(prefix=_DRAFT, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if like is not None:
                os.fchown(descriptor, like.st_uid, like.st_gid)
                _copy_attributes(path, descriptor)
            os.fchmod(descriptor, mode if like is None else like.st_mode & 0o7777)
            file.flush()
            os.fsync(descriptor)
        if like is not None and _signature(path.stat()) != _signature(like):
            raise ChangedMeanwhileError(f"{path} was changed by somebody else")
        Path(draft).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)  # noqa: PTH108
        raise
    directories.sync(path.parent)


def drafts(directory: Path) -> list[Path]:
    """What whoever was killed while it replaced a file has left there. Raises OSError."""
    try:
        return sorted(path for path in directory.iterdir() if _DRAFTS.fullmatch(path.name) is not None)
    except FileNotFoundError:
        return []


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _copy_attributes(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, name, os.getxattr(path, name))
