"""Watches a directory and one sub directory of it for changes of their *.yaml, *.yml and *.json files.

Theory of operation
-------------------
inotify(7) says what happened to which name, without a thread: its descriptor is readable when something did. Changes
come in bursts (an editor writes a backup, renames, changes the mode; many nodes publish at once), so a change is
reported once nothing more has come for QUIET seconds, or after PATIENCE seconds at the latest.

A file that is being written in place must not be read half: from its creation or first modification until whoever
writes closes it, it is in `held`, and the reader goes on with what the file said before. Renamed and linked files are
whole when they appear.

inotify has gaps: it is absent on some systems, it does not see what other hosts do to a network file system, nor what
happens behind a symbolic link, and it follows a directory that is moved away. So the files' inode, size and times are
compared every SAFETY seconds as well, and every POLL seconds where inotify cannot be relied on or the directory is
missing. A difference counts when it stays the same for two comparisons, so that here too a file is not taken while it
is being written.
"""

import asyncio
import contextlib
import os
import stat
from pathlib import Path

from inotify_simple import Event, flags

from nodeseal.linux.inotify import open_inotify, sees_all

QUIET = 0.05
PATIENCE = 1.0
POLL = 0.5
SAFETY = 5.0

_MASK = (
    flags.MODIFY | flags.ATTRIB | flags.CLOSE_WRITE | flags.MOVED_FROM | flags.MOVED_TO | flags.CREATE | flags.DELETE
    | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
)  # fmt: skip

_NONE = -1
"""In place of a watch where there is none to be had (the user's limit is reached): the comparisons have to do."""

_Signature = tuple[object, ...]


def is_state_file(name: str) -> bool:
    """Whether a file of this name is part of the mesh state: *.yaml, *.yml or *.json, in any case, not hidden."""
    return name.lower().endswith((".yaml", ".yml", ".json")) and not name.startswith(".")


def is_lookalike(name: str) -> bool:
    """Whether somebody may take a file of this name for a part of the mesh state, although it is none."""
    return name.lower().endswith((".jsonl", ".ndjson", ".json5", ".jsonc")) and not name.startswith(".")


class DirectoryWatch:
    """Begins to watch when made, which must be before the first reading. Needs a running event loop."""

    def __init__(self, directory: Path, subdirectory: str) -> None:
        self._paths = (directory, directory / subdirectory)
        self._loop = asyncio.get_running_loop()
        self._inotify = open_inotify()
        self._watches: dict[int, Path] = {}
        self._watched: dict[Path, tuple[int, int, int]] = {}  # device, inode, watch descriptor
        self._held: set[Path] = set()
        self._newly_held = False
        self._relevant = False
        self._woken = asyncio.Event()
        if self._inotify is not None:
            self._loop.add_reader(self._inotify, self._on_readable)
        self._arm()
        self._accepted = self._signature()
        self._pending: _Signature | None = None

    @property
    def held(self) -> frozenset[Path]:
        """Files that somebody is writing in place at this moment."""
        return frozenset(self._held)

    def close(self) -> None:
        """Ends watching. May be called twice."""
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify)
            self._inotify.close()
            self._inotify = None

    def settled(self) -> bool:
        """Whether nobody began to write a file since `changed` returned (or the watch was made).

        Asked after reading and before using what was read; if not, it is dropped, and `changed` will return again.
        """
        self._drain()
        # Other files may have changed for good: they are to be read again without waiting for this one.
        self._relevant = self._relevant or self._newly_held
        return not self._newly_held

    async def changed(self) -> None:
        """Waits until something has changed since it last returned, and is at rest."""
        while not self._relevant:
            woken = await self._wait(self._timeout())
            self._drain()
            if self._arm():
                self._relevant = True
            if not woken and not self._relevant:
                await self._compare()
        deadline = self._loop.time() + PATIENCE
        while await self._wait(min(QUIET, deadline - self._loop.time())):
            self._drain()
        self._arm()
        # What happens from here on is for the next time.
        self._relevant = self._newly_held = False
        # The comparison's state is taken before the caller reads: what changes later than that is seen as a change. In
        # a thread: a directory that is being written to, or is far away, can keep one waiting.
        self._accepted, self._pending = await asyncio.to_thread(self._signature), None

    def _timeout(self) -> float:
        watches = [watch for _, _, watch in self._watched.values()]
        reliable = self._paths[0] in self._watched and _NONE not in watches and sees_all(self._paths[0])
        return SAFETY if reliable and self._pending is None else POLL

    async def _wait(self, seconds: float) -> bool:
        """Whether an event came within that time."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    async def _compare(self) -> None:
        signature = await asyncio.to_thread(self._signature)
        if signature == self._accepted:
            self._pending = None
        elif signature == self._pending:
            self._relevant = True
        else:
            self._pending = signature

    def _signature(self) -> _Signature:
        """Equal for equal content, as far as the system's file times can tell."""
        parts: list[object] = []
        for path in self._paths:
            try:
                with os.scandir(path) as entries:
                    names = sorted(
                        entry.name for entry in entries if is_state_file(entry.name) or is_lookalike(entry.name)
                    )
            except OSError as error:
                parts.append((str(path), error.errno))
                continue
            for name in names:
                try:
                    status = (path / name).stat()
                except OSError as error:
                    parts.append((name, error.errno))
                else:
                    parts.append((name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return tuple(parts)

    def _arm(self) -> bool:
        """Watches what the paths lead to now. True if that is not what was watched."""
        if self._inotify is None:
            return False
        different = False
        for path in self._paths:
            try:
                status = path.stat()
                found = (status.st_dev, status.st_ino)
            except OSError:
                found = None
            known = self._watched.get(path)
            if found == (known and known[:2]):
                continue
            different = True
            if known is not None:
                del self._watched[path]
                self._forget(known[2])
                with contextlib.suppress(OSError):  # it went with its directory
                    self._inotify.rm_watch(known[2])
            if found is not None:
                self._watched[path] = (*found, _NONE)
                with contextlib.suppress(OSError):
                    watch = self._inotify.add_watch(path, _MASK)
                    self._watched[path], self._watches[watch] = (*found, watch), path
        return different

    def _forget(self, watch: int) -> None:
        path = self._watches.pop(watch, None)
        if path is not None:
            self._watched.pop(path, None)
            self._held = {file for file in self._held if file.parent != path}

    def _on_readable(self) -> None:
        self._drain()
        self._woken.set()

    def _drain(self) -> None:
        while self._inotify is not None and (events := self._inotify.read(timeout=0)):
            for event in events:
                self._on_event(event)

    def _on_event(self, event: Event) -> None:
        watch, mask, _cookie, name = event
        if mask & flags.Q_OVERFLOW:
            # What was lost may have been the end of a writing.
            self._held.clear()
            self._relevant = True
            return
        if mask & (flags.IGNORED | flags.DELETE_SELF | flags.MOVE_SELF):
            if mask & flags.IGNORED:
                self._forget(watch)
            self._relevant = True
            return
        directory = self._watches.get(watch)
        if directory is None:
            return
        if not is_state_file(name):
            # A directory may be the sub directory; a symbolic link that others go through is changed by a rename.
            moved = bool(mask & (flags.ISDIR | flags.MOVED_TO | flags.MOVED_FROM))
            self._relevant = self._relevant or moved or is_lookalike(name)
            return
        path = directory / name
        if mask & flags.MODIFY or (mask & flags.CREATE and _is_being_made(path)):
            if path not in self._held:
                self._held.add(path)
                self._newly_held = True
            return
        if not mask & flags.ATTRIB:
            self._held.discard(path)
        self._relevant = True


def _is_being_made(path: Path) -> bool:
    """Whether a name that has just appeared is a new file, which its maker will write to and close; not a link."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1
