"""Pods that come and go, as the network plugin tells of them: a pod starts once it is enrolled, and not before.

The plugin asks when the pod's network has been made and no process of the pod runs yet (nodeseal.cni). The source says
which workload it is, from then on the mesh state has it, and the enrolment goes its usual way. The answer waits until
the workload is captured and published: whatever the pod dials from its first instruction on is tunnelled.

What waits here waits for one pod, and for a bounded time. A failure of the enrolment is no answer yet: the next try may
do, and the kubelet would begin anew with another sandbox, 14 s later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from nodeseal.enrolment.capture_thread import inode_of
from nodeseal.enrolment.enrolments import Enrolments
from nodeseal.enrolment.workload import Enrolment
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.sources.arrival import Arrival, ArrivalError
from nodeseal.sources.source import Source

log = logging.getLogger("nodeseal.agent")

_LEAVE_S = 3.0
"""How long the runtime waits for a pod that goes: its namespace is closed by then, or goes all the same."""


class Answer(Enum):
    """What became of an arrival."""

    ENROLLED = "enrolled"
    """It is captured and published."""
    NOT_WANTED = "not wanted"
    """It is not to be enrolled: it starts as it is."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It is to be enrolled, and is not. `why`: one line."""

    why: str


Outcome = Answer | Refused


class Arrivals:
    """All methods belong to the event loop."""

    def __init__(
        self,
        source: Source,
        enrolments: Enrolments,
        present: Callable[[], Mesh | None],
        starting: Callable[[], str | None],
    ) -> None:
        """`present`: the mesh state that the node has; `starting`: what the agent does before it is ready, None once it
        is."""
        self._source = source
        self._enrolments = enrolments
        self._present = present
        self._starting = starting

    async def arrive(self, arrival: Arrival, seconds: float) -> Outcome:
        """Waits until the pod is enrolled, for at most `seconds`. Of one that is not wanted it is said at once."""
        waits = _Waits()
        try:
            async with asyncio.timeout(seconds):
                return await self._arrive(arrival, waits)
        except ArrivalError as error:
            return Refused(str(error))
        except TimeoutError:
            why = self._why_not(arrival, waits.expected)
            log.warning("pod %s cannot start: within %.0f s %s", arrival.name, seconds, why)
            return Refused(why)

    async def _arrive(self, arrival: Arrival, waits: _Waits) -> Outcome:
        """Raises ArrivalError."""
        name = await self._source.expect(arrival, self._present())
        if name is None:
            return Answer.NOT_WANTED
        waits.expected = name
        with self._enrolments.watched(name) as told:
            if (known := self._enrolments.get(name)) is not None:
                known.arrive()
            while True:
                told.clear()
                enrolment = self._enrolments.get(name)
                if enrolment is not None and enrolment.is_joined(arrival.netns):
                    return Answer.ENROLLED
                await told.wait()

    async def depart(self, arrival: Arrival) -> None:
        """The pod's network is about to be removed: nothing of it is published or captured when this returns, or when
        that takes too long. Never raises."""
        await self._source.depart(arrival)
        inode = inode_of(arrival.netns) if arrival.netns else None
        if inode is None:
            return  # gone already: who looks after the namespaces finds that
        try:
            async with asyncio.timeout(_LEAVE_S):
                await asyncio.gather(*(self._depart(one, inode) for one in self._enrolments.values()))
        except TimeoutError:
            log.warning("pod %s is removed before it has left the mesh", arrival.name)

    async def _depart(self, enrolment: Enrolment, inode: int) -> None:
        place = enrolment.place_at(inode)
        if place is None:
            return
        with self._enrolments.watched(enrolment.name) as told:
            enrolment.depart(place)
            while enrolment.installed is not None and enrolment.place_at(inode) is not None:
                told.clear()
                await told.wait()

    def is_enrolled(self, netns: str) -> bool:
        """Whether something is captured in this network namespace."""
        return any(one.is_captured_at(netns) for one in self._enrolments.values())

    def why_not_enrolled(self, arrival: Arrival) -> str | None:
        """Why a pod is not enrolled that is to be, one line; None: all is as it should be, or nobody knows."""
        inode = inode_of(arrival.netns) if arrival.netns else None
        if inode is None:
            return None
        there = [one for one in self._enrolments.values() if one.place_at(inode) is not None]
        lacking = [
            one for one in there if one.wanted_state is not None and one.wanted_state.wanted and not one.installed
        ]
        return (lacking[0].why()[1] or "it is about to be") if lacking else None

    def _why_not(self, arrival: Arrival, name: WorkloadName | None) -> str:
        if (doing := self._starting()) is not None:
            return f"the agent was not ready: {doing}"
        if name is None:
            return f"{self._source.describe()} did not say whether it is to be enrolled"
        enrolment = self._enrolments.get(name)
        if enrolment is None:
            return f"{self._source.describe()} did not have the workload {name}"
        if enrolment.failure is not None:
            return enrolment.failure.detail
        wanted = enrolment.wanted_state
        if wanted is None or wanted.netns is None:
            return f"{self._source.describe()} did not say in which network namespace {name} is"
        if enrolment.is_captured_at(arrival.netns):
            return f"the workload {name} was captured but not published"
        _word, detail = enrolment.why()
        return detail or f"the workload {name} was not enrolled in {arrival.netns}; it is to be in {wanted.netns}"


@dataclass(slots=True)
class _Waits:
    """How far one that waits has come."""

    expected: WorkloadName | None = None
    """What the source has said that it is."""
