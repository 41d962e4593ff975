"""Keeps the network plugin in place for as long as the agent runs: other tools write the list anew, or put another one
before it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator

from nodeseal.cni.installation import Installation, InstallationError
from nodeseal.linux.directory_events import DirectoryEvents
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord

log = logging.getLogger("nodeseal.agent")

LOOK_S = 30.0
"""How often it looks although nothing was told."""
_QUIET_S = 0.1
_STRIFE_TIMES, _STRIFE_S, _PAUSE_S = 10, 300.0, 10.0
"""So many times in so many seconds is no upkeep any more: from then on the other tool has some time each."""


class Upkeep:
    """Belongs to the event loop."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._failure: str | None = None
        self._done: deque[float] = deque(maxlen=_STRIFE_TIMES)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Never ends by itself."""
        events = DirectoryEvents(self._installation.directories)
        try:
            while True:
                await self._settle()
                events.arm()
                if await events.wait(LOOK_S):
                    # Whoever installs a network writes several files at once.
                    await asyncio.sleep(_PAUSE_S if self._strife else _QUIET_S)
        finally:
            events.close()

    async def _settle(self) -> None:
        before, self._failure = self._failure, None
        try:
            done = await asyncio.to_thread(self._installation.settle)
        except InstallationError as error:
            self._failure = str(error)
            if self._failure != before:
                log.warning("pods start without being enrolled before: %s", error)
            return
        if done is not None:
            self._done.append(self._loop.time())
            log.info("network plugin: %s", done)

    @property
    def _strife(self) -> bool:
        full = len(self._done) == _STRIFE_TIMES
        return full and self._loop.time() - self._done[0] < _STRIFE_S

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        if self._failure is not None:
            yield Problem(ProblemWord.PLUGIN_MISSING, self._failure, "pods are enrolled after their start until then")
        elif self._strife:
            text = f"another tool takes the network plugin out of {self._installation.directories[0]} again and again"
            yield Problem(
                ProblemWord.PLUGIN_MISSING,
                text,
                "let that tool leave the directory to others (Cilium: cni.exclusive=false)",
            )
