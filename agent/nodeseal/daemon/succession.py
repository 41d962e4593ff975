"""Which of several agents of one run directory is active: the one that holds its lock. The others stand by.

    agent.lock         held by the active one
    agent.next         held by the one that takes over, while it waits for the lock
    agent-PID.lock     held by each that stands by, so that `nodeseal cleanup` finds it

An agent that comes prepares all that it can, and then asks the active one, over the local API, to let go. That one ends
its part in the node, which touches neither core nor capture nor publication, gives up the lock, and stands by. It takes
over again when nobody is active any more: the agent that came was killed, or could not begin. So at each moment either
somebody is active or somebody is about to be.

An agent that came goes before those that have let go (agent.next), or a third one would get the lock that the first
gave up for the second. An agent of a version that hands nothing over, or one that hangs, is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from nodeseal.api import client
from nodeseal.contracts.api import HAND_OVER
from nodeseal.daemon.errors import StartError
from nodeseal.daemon.held_directory import HeldDirectory
from nodeseal.linux import lock_file
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.local import run_directory

log = logging.getLogger("nodeseal.agent")

_POLL_S = 0.05
_STANDBY_POLL_S = 0.5
_PREPARE_AGAIN_S = 5.0
_ASK_AGAIN_S = 5.0
_ASK_TIMEOUT_S = 5.0


class NotPreparedError(Exception):
    """An agent could not do what the active one does; one line."""


class Succession:
    """Of one process. All methods belong to the event loop; they return None when `ending` is set."""

    def __init__(self, run_dir: Path, ending: asyncio.Event) -> None:
        self._run_dir = run_dir
        self._ending = ending
        self._said = ""
        self._standby: LockFile | None = None

    async def take(self, prepare: Callable[[], Awaitable[None]]) -> HeldDirectory | None:
        """For an agent that comes: at once where nobody is active, otherwise once `prepare` has succeeded and the
        active one has let go. `prepare` raises NotPreparedError, and is tried again. Raises StartError."""
        if (held := self._try()) is not None:
            return held
        self.stand_by()
        log.info("another agent (pid %s) is active for %s: preparing to take over", self._active(), self._run_dir)
        while not self._ending.is_set():
            try:
                await prepare()
            except NotPreparedError as error:
                self._say(f"cannot take over yet: {error}; the agent that is active goes on")
            else:
                return await self._take_over()
            if (held := self._try()) is not None:
                return held
            await self._pause(_PREPARE_AGAIN_S)
        return None

    async def take_again(self) -> HeldDirectory | None:
        """For an agent that has let go: when nobody is active and nobody is about to be. What stands against it may be
        over soon (a full disk), and nobody else may be there: it is tried again."""
        while not self._ending.is_set():
            await self._pause(_STANDBY_POLL_S)
            try:
                if self._ending.is_set() or self._active() is not None:
                    continue
                first = LockFile(self._run_dir / run_directory.AGENT_NEXT)
                try:
                    held = self._try()
                finally:
                    first.release()
            except AlreadyLocked:
                continue
            except (StartError, OSError) as error:
                self._say(f"cannot take over again yet: {error}")
                continue
            if held is not None:
                log.warning("no other agent is active for %s any more: taking over again", self._run_dir)
                return held
        return None

    def stand_by(self) -> None:
        """Others can see from now on that this process stands by, until it is active or close() is called."""
        if self._standby is None:
            try:
                self._standby = LockFile(run_directory.standby_lock(self._run_dir, os.getpid()))
            except OSError as error:
                raise StartError(f"cannot stand by in {self._run_dir}: {error.strerror or error}") from None

    def close(self) -> None:
        """It does not stand by any more."""
        if self._standby is not None:
            self._standby.release(remove=True)
            self._standby = None

    # ---- inside

    async def _take_over(self) -> HeldDirectory | None:
        first = await self._wait_for_turn()
        if first is None:
            return None
        try:
            while not self._ending.is_set():
                if (held := self._try()) is not None:
                    return held
                await self._ask()
                deadline = asyncio.get_running_loop().time() + _ASK_AGAIN_S
                while self._active() is not None and asyncio.get_running_loop().time() < deadline:
                    if not await self._pause(_POLL_S):
                        break
        finally:
            first.release()
        return None

    async def _wait_for_turn(self) -> LockFile | None:
        while not self._ending.is_set():
            try:
                return LockFile(self._run_dir / run_directory.AGENT_NEXT)
            except AlreadyLocked as error:
                self._say(f"another agent (pid {error.pid}) is about to take over: this one comes after it")
            await self._pause(_POLL_S)
        return None

    async def _ask(self) -> None:
        pid = self._active()
        try:
            answer = await asyncio.to_thread(client.ask, self._run_dir, HAND_OVER, seconds=_ASK_TIMEOUT_S)
        except client.UnknownOperation:
            self._say(f"the active agent (pid {pid}) is of a version that cannot hand over: waiting for its end")
        except client.AgentError as error:
            if self._active() is not None:
                self._say(f"the active agent (pid {pid}) does not hand over yet: {error}")
        else:
            self._say(f"the active agent (pid {answer.pid}, version {answer.version}) hands over")

    def _try(self) -> HeldDirectory | None:
        try:
            held = HeldDirectory(self._run_dir)
        except AlreadyLocked:
            return None
        self.close()
        return held

    def _active(self) -> int | None:
        return lock_file.holder(self._run_dir / run_directory.AGENT_LOCK)

    async def _pause(self, seconds: float) -> bool:
        """False when the process is to end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)
        return not self._ending.is_set()

    def _say(self, text: str) -> None:
        if text != self._said:
            log.info("%s", text)
        self._said = text
