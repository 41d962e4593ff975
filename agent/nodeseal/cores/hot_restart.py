"""Workloads on their way from one core to the next: who waits for whom, and when the core before may retire.

The enrolments hand their own workloads over (Enrolment._hand_over); here is what concerns all of them together. An
upgrade is done when the new core has every workload. Until then the core before goes on accepting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from nodeseal.cores.client import CoreError
from nodeseal.cores.link import CoreLink
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.mesh.model import WorkloadName

log = logging.getLogger("nodeseal.agent")

_PATIENCE_S = 60.0
_NEIGHBOURS_PATIENCE_S = 3.0


class UpgradeError(Exception):
    """An upgrade of the core is not complete; one line."""


class Handed(Protocol):
    """A workload, as far as it concerns a change of cores: see nodeseal.enrolment.workload."""

    name: WorkloadName

    def is_behind(self, incarnation: int) -> bool:
        """Whether something is in place for it that the core of this number does not have."""

    @property
    def shares_port(self) -> bool:
        """Whether it is a process of the node, which all have port 15008 together, and something is in place for it."""

    @property
    def lacks_listeners(self) -> bool:
        """Whether its core has yet to get some of its listeners."""

    def wake(self) -> None:
        """Lets it look again."""


class HotRestart:
    """All methods belong to the event loop."""

    def __init__(self, core: CoreSupervisor, workloads: Mapping[WorkloadName, Handed]) -> None:
        self._core = core
        self._workloads = workloads
        self._upgrading = asyncio.Lock()
        self._moved_on = asyncio.Event()
        self._core_known = (0, 0.0)  # the incarnation of the core that was seen last, and since when
        self._retiring: asyncio.Task[None] | None = None
        self._begun = False
        self._failure = ""  # why begin() did not replace the core

    @property
    def unready(self) -> str | None:
        """Why the core that is installed does not serve the node yet, one line; None: it does."""
        if not self._core.ready:
            return "its core is not ready"
        if not self._begun:
            return "its core is being replaced by the one that is installed"
        if self._failure and self._core.outdated:
            return f"the core that is installed has not taken over: {self._failure}"
        return None

    async def upgrade(self) -> tuple[CoreLink, CoreLink]:
        """Replaces the core by one that is started now; no connection is cut. Returns (the one before, the new one)
        when the one before has been retired. Raises CoreError, UpgradeError."""
        async with self._upgrading:
            before = self._core.current
            link = await self._core.upgrade()
            await self.finish()
        assert before is not None
        return before, link

    async def finish(self) -> None:
        """Retires the older cores once the current one has every workload. Raises UpgradeError when that takes long;
        it is done all the same as soon as it can be."""
        retiring = self._retiring = asyncio.create_task(self._retire_at_last(), name="retire older cores")
        try:
            await asyncio.wait_for(asyncio.shield(retiring), _PATIENCE_S)
        except TimeoutError:
            waiting = [str(name) for name, workload in self._workloads.items() if self._behind(workload)]
            raise UpgradeError(
                f"the new core still lacks {', '.join(waiting[:5]) or 'the mesh state'}"
                f"{f' and {len(waiting) - 5} more' if len(waiting) > 5 else ''}; the one before goes on until it has "
                "them: see 'nodeseal status'"
            ) from None

    async def begin(self) -> None:
        """For an agent that has just adopted: replaces a core that is not the one that is installed, and finishes what
        a former agent had begun (or is due because the core before speaks another protocol)."""
        try:
            if self._core.outdated:
                log.info("another core is installed than the one that runs: replacing it")
                before, link = await self.upgrade()
                log.info("the core was replaced: pid %d by pid %d", before.pid, link.pid)
            elif self._core.unretired:
                await self.finish()
        except (CoreError, UpgradeError) as error:
            self._failure = str(error)
            log.error("the core was not replaced: %s", error)
        except Exception as error:  # not tried again by itself: each try starts a core
            self._failure = repr(error)
            log.exception("the core was not replaced")
        self._begun = True

    def stop(self) -> None:
        """Nothing is retired from here on; the next agent does it."""
        if self._retiring is not None:
            self._retiring.cancel()

    def moved_on(self) -> None:
        """An enrolment is in the present core, or the core is another one: for an upgrade that waits for it, and for
        its neighbours."""
        self._moved_on.set()
        for workload in self._workloads.values():
            if workload.shares_port and workload.lacks_listeners:
                workload.wake()

    def waits_for_neighbours(self, name: WorkloadName) -> bool:
        """See NodeServices. For a while only: one that cannot be handed over is no reason for the others to stand."""
        loop = asyncio.get_running_loop()
        if self._core_known[0] != self._core.incarnation:
            self._core_known = (self._core.incarnation, loop.time())
            loop.call_later(_NEIGHBOURS_PATIENCE_S, self.moved_on)
        if loop.time() - self._core_known[1] >= _NEIGHBOURS_PATIENCE_S:
            return False
        neighbours = (other for other in self._workloads.values() if other.name != name and other.shares_port)
        return any(map(self._behind, neighbours))

    async def _retire_at_last(self) -> None:
        while not self._core.ready or any(map(self._behind, self._workloads.values())):
            self._moved_on.clear()
            await self._moved_on.wait()
        await self._core.retire_older()

    def _behind(self, workload: Handed) -> bool:
        return workload.is_behind(self._core.incarnation)
