"""Native connections of this node's workloads: why they are in plaintext, and the end of those that are refused by now.

The core decides about a connection once, and has no part in it when it is native. So the agent asks again, by the same
functions, whenever what the core decides by has changed: at once, and some times more, since a connection that was
allowed just before may still be on its way. It ends what is refused (SOCK_DESTROY). A peer's enrolment never refuses a
connection that runs; strict mode does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nodeseal.capture import constants
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.natives import Native, Total
from nodeseal.contracts.refusal import Refusal
from nodeseal.contracts.status import NativeRow
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.enrolment.workload import Enrolment
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.sock_diag import DirectError
from nodeseal.mesh import decide
from nodeseal.mesh.address import OriginalDestination, SourceAddress
from nodeseal.mesh.decide import Allow, Deny, Refuse, Route
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.mesh.reasons import WhyPlaintext, WhyRefused

log = logging.getLogger("nodeseal.agent")

_AGAIN_S = (0.0, 1.0, 5.0, 20.0, 75.0)
"""After a change. A handshake whose packets are lost takes a minute at most (tcp_synack_retries)."""
_REFUSALS_KEPT = 256
_DAY_S = 86400.0
_WORDS = {
    constants.NATIVE_EXCLUDED_PORT: WhyPlaintext.EXCLUDED_PORT,
    constants.NATIVE_EXCLUDED_RANGE: WhyPlaintext.EXCLUDED_RANGE,
    constants.NATIVE_OUTSIDE: WhyPlaintext.OUTSIDE_MESH,
    constants.NATIVE_MARK: WhyPlaintext.APPLICATION_MARK,
    constants.NATIVE_OPEN: WhyPlaintext.OPEN_ON_FAILURE,
    constants.NATIVE_NODE: WhyPlaintext.FROM_NODE,
}
_DECIDED_AGAIN = (constants.NATIVE_DECIDED, constants.NATIVE_OUTSIDE)


def why(mesh: Mesh | None, name: WorkloadName, native: Native) -> WhyPlaintext | None:
    """Why the connection is in plaintext: for what the BPF programs let it go, or what the core would say of it now.
    None: the mesh state does not tell."""
    if native.reason != constants.NATIVE_DECIDED:
        return _WORDS.get(native.reason)
    match _answer(mesh, name, native):
        case Allow(reason):
            return reason
        case Route((decide.Plaintext(_, reason), *_)):
            return reason
        case _:
            return None


def refusal(mesh: Mesh | None, name: WorkloadName, native: Native) -> WhyRefused | None:
    """Why the connection is to be ended; None: it may go on."""
    if native.reason not in _DECIDED_AGAIN:
        return None
    answer = _answer(mesh, name, native)
    return answer.why if isinstance(answer, Refuse | Deny) else None


def _answer(mesh: Mesh | None, name: WorkloadName, native: Native) -> object:
    if mesh is None:
        return None
    if native.inbound:
        (source, _), (_, port) = native.source, native.destination
        return decide.inbound_plaintext(mesh, name, source, port, established=True)
    return decide.outbound(mesh, name, OriginalDestination(*native.destination), established=True)


@dataclass(slots=True)
class _Cut:
    first: float
    last: float
    destination: str
    count: int = 0


class NativeConnections:
    """Of all workloads of the node. All methods belong to the event loop."""

    def __init__(
        self,
        capture: CaptureThread,
        enrolments: Mapping[WorkloadName, Enrolment],
        mesh: Callable[[], Mesh | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capture = capture
        self._enrolments = enrolments
        self._mesh = mesh
        self._clock = clock
        self._decided: Mesh | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._task: asyncio.Task[None] | None = None
        self._cut: dict[WorkloadName, int] = {}
        self._refusals: dict[tuple[WorkloadName, bool, str, WhyRefused], _Cut] = {}

    def look_again(self) -> None:
        """What the core decides by may have changed."""
        mesh = self._mesh()
        if mesh is not None and mesh is not self._decided:
            self._decided = mesh
            self.stop()
            loop = asyncio.get_running_loop()
            self._timers = [loop.call_later(after, self._begin) for after in _AGAIN_S]

    def stop(self) -> None:
        """Nothing is looked at from here on, until look_again()."""
        for timer in self._timers:
            timer.cancel()
        if self._task is not None:
            self._task.cancel()

    async def check(self) -> None:
        """Ends those that are refused by now. Never raises."""
        try:
            natives = await self._capture.natives()
        except OSError as error:
            log.error("native connections cannot be read: %s", error.strerror)
            return
        mesh = self._mesh()
        for name, enrolment in list(self._enrolments.items()):
            ours = natives.get(str(name))
            if enrolment.installed is None or not ours:
                continue
            for native, reason in await asyncio.to_thread(_refused, mesh, name, ours):
                try:
                    ended = await self._capture.end_native(enrolment.installed.captured, native)
                except (DirectError, LinuxError, OSError) as error:
                    log.error("workload %s: a connection that is refused cannot be ended: %s", name, error)
                    continue
                if ended:
                    self._note(name, native, reason)

    def refusals(self) -> list[Refusal]:
        """Those that were ended, of the last day, as the cores tell theirs."""
        now = self._clock()
        return [
            Refusal(
                workload=str(name),
                kind="plaintext",
                direction="inbound" if inbound else "outbound",
                source=source,
                destination=cut.destination,
                reason=reason.value,
                count=cut.count,
                first_ms=int((now - cut.first) * 1000),
                last_ms=int((now - cut.last) * 1000),
            )
            for (name, inbound, source, reason), cut in self._refusals.items()
            if now - cut.last < _DAY_S
        ]

    async def rows(self) -> dict[str, NativeRow]:
        """Workload that is captured -> what its native connections come to."""
        try:
            natives, sums = await self._capture.natives(), await self._capture.native_sums()
        except (OSError, CaptureError) as error:
            log.error("native connections cannot be counted: %s", error)
            return {}
        found = {}
        for name in [name for name, enrolment in self._enrolments.items() if enrolment.installed is not None]:
            total = sums.get(str(name), Total())
            found[str(name)] = NativeRow(
                open=len(natives.get(str(name), {})),
                opened=total.opened,
                closed=total.closed,
                bytes_acknowledged=total.acknowledged,
                bytes_received=total.received,
                ended=self._cut.get(name, 0),
            )
        return found

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self.check(), name="natives")

    def _note(self, name: WorkloadName, native: Native, reason: WhyRefused) -> None:
        now, destination = self._clock(), str(SourceAddress(*native.destination))
        source, direction = str(native.source[0]), "from" if native.inbound else "to"
        far = native.source if native.inbound else native.destination
        log.warning("workload %s: ended a connection %s %s: %s", name, direction, SourceAddress(*far), reason.value)
        self._cut[name] = self._cut.get(name, 0) + 1
        key = (name, native.inbound, source, reason)
        if key not in self._refusals and len(self._refusals) == _REFUSALS_KEPT:
            del self._refusals[min(self._refusals, key=lambda one: self._refusals[one].last)]
        cut = self._refusals.setdefault(key, _Cut(now, now, destination))
        cut.last, cut.destination, cut.count = now, destination, cut.count + 1


def _refused(mesh: Mesh | None, name: WorkloadName, natives: Mapping[int, Native]) -> list[tuple[Native, WhyRefused]]:
    """Many connections have one answer."""
    answers: dict[object, WhyRefused | None] = {}
    found = []
    for native in natives.values():
        # Of the two ends, what the decision looks at.
        asked = (native.source[0], native.destination[1]) if native.inbound else native.destination
        key = native.inbound, native.reason, asked
        if key not in answers:
            answers[key] = refusal(mesh, name, native)
        if (reason := answers[key]) is not None:
            found.append((native, reason))
    return found
