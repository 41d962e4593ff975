"""Tells that something has happened to a file of some directories (inotify(7)), without a thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

from inotify_simple import flags

from nodeseal.linux.inotify import open_inotify

_MASK = (
    flags.CLOSE_WRITE | flags.MOVED_FROM | flags.MOVED_TO | flags.CREATE | flags.DELETE | flags.DELETE_SELF
    | flags.MOVE_SELF | flags.ONLYDIR
)  # fmt: skip


class DirectoryEvents:
    """Needs a running event loop. What it does not see, where there is no inotify or behind symbolic links, the caller
    finds by looking every now and then."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories = tuple(directories)
        self._inotify = open_inotify()
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._inotify is not None:
            self._loop.add_reader(self._inotify, self._on_readable)
        self.arm()

    def arm(self) -> None:
        """Watches the directories that are there now: one that has been made anew, too."""
        if self._inotify is not None:
            for directory in self._directories:
                with contextlib.suppress(OSError):
                    self._inotify.add_watch(directory, _MASK)

    async def wait(self, seconds: float) -> bool:
        """Whether something happened since this was last called, or within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    def close(self) -> None:
        """Ends the watching."""
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify)
            self._inotify.close()
            self._inotify = None

    def _on_readable(self) -> None:
        assert self._inotify is not None
        self._inotify.read(timeout=0)
        self._woken.set()
