"""Files that say how this very process is, for probes of its own container.

    DIRECTORY/alive    touched every second while the event loop runs, of an agent that stands by as well
    DIRECTORY/ready    touched every second while the agent is active and has what a rollout may rely on

A file is fresh or it says nothing: nobody has to take it away when the process is killed, or hangs. A file and not the
local API, whose socket is the active agent's, whoever asks; and not a command, which costs a tenth of a second of CPU
each time. The directory must be this container's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger("nodeseal.agent")

ALIVE = "alive"
READY = "ready"
_BEAT_S = 1.0
_LONG_BEATS = 10


class ProcessHealth:
    """Without a directory it writes nothing."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._unready: Callable[[], str | None] | None = None
        self._said = False
        self._beats = 0

    @contextlib.contextmanager
    def of(self, unready: Callable[[], str | None]) -> Iterator[None]:
        """The agent is active meanwhile. `unready`: why it is not ready, None when it is."""
        self._unready, self._said, self._beats = unready, False, 0
        try:
            yield
        finally:
            self._unready = None
            self._remove(READY)

    def begin(self) -> None:
        """Forgets what a process before this one left. Raises OSError when the directory cannot be written."""
        if self._directory is not None:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._remove(READY)
            (self._directory / ALIVE).touch(mode=0o644)

    async def run(self) -> None:
        """Until cancelled; then nothing is left of it."""
        try:
            while True:
                self._beat()
                await asyncio.sleep(_BEAT_S)
        finally:
            self._remove(ALIVE, READY)

    def _beat(self) -> None:
        self._touch(ALIVE)
        if self._unready is None:
            return
        self._beats += 1
        why = self._unready()
        if why is None:
            self._touch(READY)
            if not self._said:
                log.info("agent is ready")
            self._said = True
        else:
            self._remove(READY)
            if self._beats % _LONG_BEATS == 0:
                log.info("agent is not ready: %s", why)

    def _touch(self, name: str) -> None:
        try:
            if self._directory is not None:
                (self._directory / name).touch(mode=0o644)
        except OSError as error:
            log.warning("cannot write %s of the health_directory: %s", name, error.strerror or error)

    def _remove(self, *names: str) -> None:
        if self._directory is not None:
            for name in names:
                with contextlib.suppress(OSError):
                    (self._directory / name).unlink()
