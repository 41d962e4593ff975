"""Whether a node has what a rollout may rely on: then the next node may have its turn, and the agent before may end.

Ready is an agent that has taken a mesh state from its source, whose core is the one that is installed, and that has
enrolled the workloads that it should. Once ready it stays so: what comes later is told by `status`. Workloads are of
two kinds:

* One that was enrolled when this agent took over has to be so again, however long it takes: a new version that loses
  what the one before had must not go on to the next node. It is not waited for once its place is gone.
* Another is given a minute from the first mesh state. One that can never be enrolled must not stop a rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from nodeseal.enrolment.failure import Failure
from nodeseal.mesh.model import Phase, Workload, WorkloadName
from nodeseal.mesh.reasons import WhyNotEnrolled

PATIENCE_S = 60.0
_GONE = (WhyNotEnrolled.NAMESPACE_GONE, WhyNotEnrolled.CGROUP_GONE)


class Enrolled(Protocol):
    """What counts of an enrolment."""

    name: WorkloadName
    wanted_state: Workload | None
    phase: Phase
    failure: Failure | None


class Readiness:
    """All methods belong to the event loop."""

    def __init__(self) -> None:
        self.adopted: frozenset[WorkloadName] = frozenset()
        """What the agent before had enrolled."""
        self._synced_at: float | None = None
        self._ready = False

    def synced(self) -> None:
        """A mesh state of the source has been taken."""
        if self._synced_at is None:
            self._synced_at = asyncio.get_running_loop().time()

    def why_not(self, enrolments: Iterable[Enrolled], *, core: str | None) -> str | None:
        """One line; None when it is ready. `core`: why the core does not serve yet."""
        if not self._ready:
            why = self._why_not(enrolments, core=core)
            if why is not None:
                return why
            self._ready = True
        return None

    def _why_not(self, enrolments: Iterable[Enrolled], *, core: str | None) -> str | None:
        if self._synced_at is None:
            return "it has no mesh state of its source yet"
        if core is not None:
            return core
        patient = asyncio.get_running_loop().time() - self._synced_at < PATIENCE_S
        waiting = sorted(one.name for one in enrolments if self._waits_for(one, patient=patient))
        if not waiting:
            return None
        more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
        return f"not enrolled yet: {', '.join(map(str, waiting[:3]))}{more}"

    def _waits_for(self, one: Enrolled, *, patient: bool) -> bool:
        wanted = one.wanted_state
        if wanted is None or not wanted.wanted or wanted.netns is None or one.phase is Phase.ENROLLED:
            return False
        if one.failure is not None and one.failure.reason in _GONE:
            return False
        return patient or one.name in self.adopted
