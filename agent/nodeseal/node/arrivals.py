"""Pods that come and go, as the network plugin tells of them: a pod starts once it is enrolled, and not before.

The plugin asks when the pod's network has been made and no process of the pod runs yet (nodeseal.cni). The source says
which workload it is, from then on the mesh state has it, and the enrolment goes its usual way. The answer waits until
the workload is captured and published: whatever the pod dials from its first instruction on is tunnelled. It waits a
little more, until the source gives the publication back: then other nodes have it, too, or are just getting it. For who
wants to be sure of what the pod is dialled by at once, it waits until the workload is ENROLLED: `settle` has passed.

What waits here waits for one pod, and for a bounded time. A failure of the enrolment is no answer yet: the next try may
do, and the kubelet would begin anew with another sandbox, 14 s later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from nodeseal.backoff import Backoff
from nodeseal.enrolment.capture_thread import inode_of
from nodeseal.enrolment.enrolments import Enrolments
from nodeseal.enrolment.workload import Enrolment
from nodeseal.mesh.model import Mesh, Phase, WorkloadName
from nodeseal.sources.arrival import Arrival, ArrivalError
from nodeseal.sources.source import Source

log = logging.getLogger("nodeseal.agent")

_LEAVE_S = 3.0
"""How long the runtime waits for a pod that goes: its namespace is closed by then, or goes all the same."""


_AGAIN_S, _SELDOM_S = 0.25, 2.0
"""Between two questions to a source that cannot say; and from first to later tries of what has failed."""
_ECHO_S = 10.0
"""How long the publication's way through the source is waited for."""


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
        starting: Callable[[], str | None],
        *,
        settled: bool = False,
    ) -> None:
        """`starting`: what the agent does before it is ready, None once it is; `settled`: see the module's text."""
        self._source = source
        self._enrolments = enrolments
        self._starting = starting
        self._settled = settled
        self._present: Mesh | None = None

    def take(self, mesh: Mesh) -> None:
        """The source has a new state, and the enrolments know of it."""
        self._present = mesh
        self._enrolments.tell_all()

    async def arrive(self, arrival: Arrival, seconds: float) -> Outcome:
        """Waits until the pod is enrolled, for at most `seconds`. Of one that is not wanted it is said at once."""
        waits = _Waits()
        try:
            async with asyncio.timeout(seconds):
                return await self._arrive(arrival, waits)
        except TimeoutError:
            why = self._why_not(arrival, waits)
            log.warning("pod %s cannot start: within %.0f s %s", arrival.name, seconds, why)
            return Refused(why)

    async def _arrive(self, arrival: Arrival, waits: _Waits) -> Outcome:
        name = await self._expect(arrival, waits)
        if name is None:
            return Answer.NOT_WANTED
        waits.expected = name
        with self._enrolments.watched(name) as told:
            if (known := self._enrolments.get(name)) is not None:
                known.arrive()
            again = Backoff(_AGAIN_S, _SELDOM_S)
            while True:
                told.clear()
                enrolment = self._enrolments.get(name)
                if enrolment is not None and self._is_there(enrolment, arrival.netns):
                    break
                failed = enrolment is not None and enrolment.failure is not None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), again.next() if failed else None)
                    continue
                # Somebody waits: sooner than the enrolment itself would. The runtime may be about to bring up lo.
                assert enrolment is not None
                enrolment.wake()
            await self._echo(name, told)
        return Answer.ENROLLED

    def _is_there(self, enrolment: Enrolment, netns: str) -> bool:
        return enrolment.is_joined(netns) and (enrolment.phase is Phase.ENROLLED or not self._settled)

    async def _expect(self, arrival: Arrival, waits: _Waits) -> WorkloadName | None:
        while True:
            try:
                return await self._source.expect(arrival, self._present)
            except ArrivalError as error:
                waits.refusal = str(error)
            await asyncio.sleep(_AGAIN_S)

    async def _echo(self, name: WorkloadName, told: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ECHO_S):
                while not self._is_seen(name):
                    told.clear()
                    await told.wait()

    def _is_seen(self, name: WorkloadName) -> bool:
        workload = self._present.workloads.get(name) if self._present is not None else None
        return workload is not None and workload.accepts_tunnels

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

    def _why_not(self, arrival: Arrival, waits: _Waits) -> str:
        name = waits.expected
        if (doing := self._starting()) is not None:
            return f"the agent was not ready: {doing}"
        if name is None:
            return waits.refusal or f"{self._source.describe()} did not say whether it is to be enrolled"
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
    refusal: str = ""
    """Why it could not say."""
