"""The file of the audit log. A thread writes it, so that a slow disk keeps nobody waiting.

It may be rotated: when the file was moved away, the next line goes to a new one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

log = logging.getLogger("nodeseal.ca")

_TOGETHER = 1_000


class AuditFile:
    """Mode 0600 when it is made. A Sink of Audit."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be written."""
        self.failure: str | None = None
        """Why the last lines could not be written; one line."""
        self._path = path
        self._descriptor = _open(path)
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """See Sink."""
        self._lines.put(line)

    def close(self) -> None:
        """Returns when all is written."""
        self._lines.put(None)
        self._thread.join()
        os.close(self._descriptor)

    def _run(self) -> None:
        while lines := list(self._batch()):
            try:
                self._write("".join(f"{line}\n" for line in lines).encode())
                self.failure = None
            except OSError as error:
                if self.failure is None:
                    log.error("the audit log %s cannot be written: %s", self._path, error.strerror or error)
                self.failure = f"the audit log {self._path} cannot be written: {error.strerror or error}"

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

    def _write(self, data: bytes) -> None:
        if not self._is_there():
            descriptor = _open(self._path)
            os.close(self._descriptor)
            self._descriptor = descriptor
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _is_there(self) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
