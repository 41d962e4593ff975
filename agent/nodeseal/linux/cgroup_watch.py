"""Learning at once that a cgroup was made: a service that starts again dials soon after (inotify(7))."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

# linux/inotify.h
_IN_CREATE, _IN_ONLYDIR = 0x100, 0x1000000
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # the numbers of IN_NONBLOCK and IN_CLOEXEC


class CgroupWatch:
    """Watches directories for what is made in them. Needs a running event loop; without inotify it only waits."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(_FLAGS)
        self._watched: dict[Path, tuple[int, int]] = {}  # inode, watch descriptor
        self._woken = asyncio.Event()
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def watch(self, directories: Iterable[Path]) -> None:
        """These, and no others. One that is not there is passed over."""
        wanted = set(directories) if self._fd >= 0 else set()
        for path in self._watched.keys() - wanted:
            self._forget(path)
        for path in wanted:
            try:
                inode = path.stat().st_ino
            except OSError:
                self._forget(path)
                continue
            if self._watched.get(path, (0, 0))[0] != inode:
                self._forget(path)
                number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_CREATE | _IN_ONLYDIR)
                if number >= 0:
                    self._watched[path] = (inode, number)
                    # What was made before the watch was is not told.
                    self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Returns when something has been made since it last returned, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)
        self._woken.clear()

    def close(self) -> None:
        """Ends watching. May be called twice."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _forget(self, path: Path) -> None:
        known = self._watched.pop(path, None)
        if known is not None:
            # Harmless when the directory is gone, and the watch with it.
            self._libc.inotify_rm_watch(self._fd, known[1])

    def _on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)
        self._woken.set()
