"""The file of the audit log. A thread writes it, so that a slow disk keeps nobody waiting.

It may be rotated: when the file was moved away, the next line goes to a new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

log = logging.getLogger("nodeseal.ca")

_TOGETHER = 1_000
_WAITING = 50_000
"""Most lines that wait for a disk which is full or hangs; those that come then are lost, and counted."""
_AGAIN_S = 1.0


STANDARD_OUTPUT = Path("-")
"""Instead of a file: for who collects what a process writes."""


class AuditFile:
    """Mode 0600 when it is made. A Sink of Audit."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be written."""
        self.failure: str | None = None
        """Why lines wait or are lost; one line."""
        self._path = path
        self._lost = 0
        self._descriptor = _open(path)
        self._closing = threading.Event()
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """See Sink."""
        if self._lines.qsize() < _WAITING:
            self._lines.put(line)
        else:
            self._lost += 1
            self.failure = f"the audit log {self._path} is written too slowly: {self._lost:,} lines are lost"

    def close(self) -> None:
        """Returns when all is written, or cannot be."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join()
        os.close(self._descriptor)

    def _run(self) -> None:
        while lines := list(self._batch()):
            left = "".join(f"{line}\n" for line in lines).encode()
            while left:
                try:
                    left = self._write(left)
                    self.failure = None
                except OSError as error:
                    why = f"the audit log {self._path} cannot be written: {error.strerror or error}"
                    if self.failure is None:
                        log.error("%s", why)
                    self.failure = why
                    if self._closing.is_set():
                        log.error("%d lines of the audit log are lost", left.count(b"\n"))
                        break
                    # They wait until there is room: no line is lost for that.
                    self._closing.wait(_AGAIN_S)

    def _batch(self) -> Iterator[str]:
        """What waits, at least one line; nothing at the end."""
        first = self._lines.get()
        if first is None:
            return
        yield first
        with contextlib.suppress(Empty):
            for _ in range(_TOGETHER):
                line = self._lines.get_nowait()
                if line is None:
                    self._lines.put(None)
                    return
                yield line

    def _write(self, data: bytes) -> bytes:
        """What is left of it. Raises OSError."""
        if not self._is_there():
            descriptor = _open(self._path)
            os.close(self._descriptor)
            self._descriptor = descriptor
        return data[os.write(self._descriptor, data) :]

    def _is_there(self) -> bool:
        if self._path == STANDARD_OUTPUT:
            return True
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def _open(path: Path) -> int:
    if path == STANDARD_OUTPUT:
        return fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
