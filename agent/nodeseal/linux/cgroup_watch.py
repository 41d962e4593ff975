"""Learning at once that a cgroup was made: a service that starts again dials soon after (inotify(7))."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

from inotify_simple import flags

from nodeseal.linux.inotify import open_inotify


class CgroupWatch:
    """Watches directories for what is made in them. Needs a running event loop; without inotify it only waits."""

    def __init__(self) -> None:
        self._inotify = open_inotify()
        self._watched: dict[Path, tuple[int, int]] = {}  # inode, watch descriptor
        self._woken = asyncio.Event()
        if self._inotify is not None:
            asyncio.get_running_loop().add_reader(self._inotify, self._on_readable)

    def watch(self, directories: Iterable[Path]) -> None:
        """These, and no others. One that is not there is passed over."""
        if self._inotify is None:
            return
        wanted = set(directories)
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
                with contextlib.suppress(OSError):
                    self._watched[path] = (inode, self._inotify.add_watch(path, flags.CREATE | flags.ONLYDIR))
                    # What was made before the watch was is not told.
                    self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Returns when something has been made since it last returned, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)
        self._woken.clear()

    def close(self) -> None:
        """Ends watching. May be called twice."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            self._inotify.close()
            self._inotify = None

    def _forget(self, path: Path) -> None:
        known = self._watched.pop(path, None)
        if known is not None and self._inotify is not None:
            with contextlib.suppress(OSError):  # the directory is gone, and the watch with it
                self._inotify.rm_watch(known[1])

    def _on_readable(self) -> None:
        if self._inotify is not None:
            self._inotify.read(timeout=0)
        self._woken.set()
