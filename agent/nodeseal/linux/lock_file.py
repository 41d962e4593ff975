"""Pid files that are locks: who holds the flock is the process that runs, whatever the file says.

flock(2) locks end with the process, also after kill -9, so that a stale file is never mistaken for a running process.
The holder is read from /proc/locks (proc_locks(5)) and not from the file's text, which may be older than the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

_NOTE_MAX = 8192


class AlreadyLocked(Exception):
    """Another process holds the lock. `pid` is that process, or None when the kernel did not say."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"{path} is held by pid {pid if pid is not None else 'unknown'}")
        self.path = path
        self.pid = pid


class LockFile:
    """An flock on `path`, held until release() or the process's end.

    The file's text is `note`, the holder's pid if none is given; `previous` is the text that was there before, and
    `previous_touch` when it was written or touched last (seconds since the epoch), None when there was no text.
    """

    def __init__(self, path: Path, note: str | None = None) -> None:
        """Takes the lock at once. Raises AlreadyLocked, or OSError when the file cannot be made."""
        self.path = path
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise AlreadyLocked(path, holder(path)) from None
            except BaseException:
                os.close(fd)
                raise
            # Between open and flock cleanup may have removed the file: a lock on a nameless file locks nobody.
            if _same_file(fd, path):
                break
            os.close(fd)
        self._fd = fd
        try:
            self.previous = os.pread(fd, _NOTE_MAX, 0).decode(errors="replace").rstrip("\n")
            self.previous_touch = os.fstat(fd).st_mtime if self.previous else None
            self.write(note if note is not None else str(os.getpid()))
        except BaseException:
            # A lock that this process has, and does not know of, nobody could take until its end.
            self.release()
            raise

    def write(self, note: str) -> None:
        """Replaces the file's text."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{note}\n".encode(), 0)

    def touch(self) -> None:
        """A sign of life: the next holder sees when the last one was. Raises OSError."""
        os.utime(self._fd)

    def release(self, *, remove: bool = False) -> None:
        """Gives the lock up; with `remove`, the file goes first, while nobody else can hold it."""
        if self._fd < 0:
            return
        if remove:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        os.close(self._fd)
        self._fd = -1


def holder(path: Path) -> int | None:
    """The pid of the process that holds an flock on `path`, or None when nobody does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    wanted = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    with Path("/proc/locks").open(encoding="ascii", errors="replace") as locks:
        for line in locks:
            fields = line.split()
            # "1: FLOCK  ADVISORY  WRITE 1234 00:19:567 0 EOF"; a waiting one has "->" as its second field.
            if len(fields) < 6 or fields[1] != "FLOCK":
                continue
            major, minor, inode = fields[5].split(":")
            if (int(major, 16), int(minor, 16), int(inode)) == wanted and int(fields[4]) > 0:
                return int(fields[4])
    return None


def _same_file(fd: int, path: Path) -> bool:
    ours = os.fstat(fd)
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
