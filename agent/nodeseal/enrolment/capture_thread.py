"""The agent's hold on capture: every call of NodeCapture, in one thread of its own, because each of them blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from nodeseal.capture import constants
from nodeseal.capture.bypass import Bypass
from nodeseal.capture.cleanup import cleanup
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import BackendName
from nodeseal.capture.natives import Event, Log, Native, Place, Total, sums
from nodeseal.capture.node import NodeCapture
from nodeseal.capture.workload import Captured, CaptureTarget
from nodeseal.linux.namespace import NAMED, NetworkNamespace
from nodeseal.linux.sock_diag import Direct, direct_connections, end_connection
from nodeseal.mesh.exclusions import Excluded
from nodeseal.mesh.model import OnFailure, Workload

log = logging.getLogger("nodeseal.agent")

P = ParamSpec("P")
T = TypeVar("T")

MARKS = frozenset(
    {
        constants.MARK_CAPTURED,
        constants.MARK_TO_APP,
        constants.MARK_CORE,
        constants.MARK_ANSWER,
        *map(constants.host_mark, constants.HOST_NUMBERS),
    }
)


def target_of(workload: Workload) -> CaptureTarget:
    """What to capture for a workload. Raises CaptureError when the mesh state gives it no namespace."""
    if workload.netns is None:
        raise CaptureError(f"cannot capture {workload.key}: the mesh state gives it no 'netns'")
    open_on_failure = workload.on_failure is OnFailure.OPEN
    return CaptureTarget(str(workload.key), workload.netns, workload.addresses, open_on_failure, workload.host)


def is_at(captured: Captured, netns: str) -> bool:
    """Whether the captured namespace is the one at `netns` (a path, or a name under /run/netns). One stat(2)."""
    return inode_of(netns) == captured.namespace.inode


def inode_of(netns: str) -> int | None:
    """The number of the namespace at `netns` (a path, or a name under /run/netns); None when there is none."""
    path = Path(netns) if "/" in netns else NAMED / netns
    try:
        return path.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


_AHEAD = 2
"""Enrolments that wait in the thread's queue at most. What else is to be done waits for no more than these: one of many
workloads that come at once is complete before the last has begun."""


class CaptureThread:
    """Asynchronous NodeCapture; the methods raise what it raises."""

    def __init__(self, capture: NodeCapture) -> None:
        self._capture = capture
        self._bypass: Bypass | None = None
        self._enrolling = asyncio.Semaphore(_AHEAD)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="capture")

    async def prepare(self) -> None:
        """See NodeCapture.prepare."""
        await self._run(self._capture.prepare)
        self._bypass = self._capture.bypass()

    @property
    def backend(self) -> BackendName | None:
        """Which backend captures new workloads, after prepare()."""
        return self._capture.backend

    @property
    def why(self) -> str:
        """Why it is not eBPF; "" when it is, or when the configuration asks for it."""
        return self._capture.why

    @property
    def early(self) -> str:
        """See NodeCapture.early."""
        return self._capture.early

    @property
    def bypass(self) -> Bypass:
        """What bypasses the core, after prepare(). It may be used in any thread."""
        assert self._bypass is not None
        return self._bypass

    async def adopt(self) -> list[Captured]:
        """See NodeCapture.adopt."""
        return await self._run(self._capture.adopt)

    async def open_namespace(self, netns: str) -> NetworkNamespace:
        """An open namespace, to be closed by the caller."""
        return await self._run(NetworkNamespace.open, netns)

    async def enrol(self, workload: Workload) -> Captured:
        """Captures a workload, or one that is leaving again."""
        async with self._enrolling:
            return await self._run(self._capture.enrol, target_of(workload))

    async def take_listeners(self, captured: Captured, held: Mapping[int, int]) -> list[int]:
        """Completes the listeners: duplicates of `held` (role -> descriptor), new ones for what is missing. The roles
        of these."""
        return await self._run(self._capture.take_listeners, captured, held)

    async def park(self, captured: Captured, *, on: bool, native: bool) -> None:
        """See NodeCapture.park."""
        await self._run(self._capture.park, captured, on=on, native=native)

    async def look_again(self, workload: Workload) -> bool:
        """See NodeCapture.look_again."""
        return await self._run(self._capture.look_again, str(workload.key))

    async def configure(self, workload: Workload) -> None:
        """What may change while it is captured."""
        await self._run(self._capture.configure, target_of(workload))

    async def stop_new(self, captured: Captured) -> None:
        """New connections go direct from now on."""
        await self._run(self._capture.stop_new, captured.target)

    async def release(self, captured: Captured) -> None:
        """Everything is as it was before; closes `captured`."""
        await self._run(self._capture.release, captured.target)

    @property
    def has_rules(self) -> bool:
        """See NodeCapture.has_rules."""
        return self._capture.has_rules

    @property
    def tracked(self) -> str:
        """See NodeCapture.tracked."""
        return self._capture.tracked

    async def set_bypass(self, bypass: Mapping[str, Excluded]) -> None:
        """See NodeCapture.set_bypass."""
        await self._run(self._capture.set_bypass, bypass)

    async def errors(self) -> dict[str, int]:
        """What BPF programs counted: name -> how often."""
        return await self._run(self._capture.errors, quick=True)

    async def direct(self, captured: Captured) -> list[Direct]:
        """Connections of the workload that do not go through the core. Raises DirectError."""
        own, host = captured.target.addresses, captured.target.host
        found = await self._run(captured.namespace.run, lambda: direct_connections(own, MARKS))
        if host is None:
            return found
        # Of all that the processes of the node have, what is this one's.
        cgroups = await self._run(self._capture.cgroups_of, host.cgroup)
        return [
            one
            for one in found
            if (one.local[0] in own and host.has(one.local[1]) if one.inbound else one.cgroup in cgroups)
        ]

    async def natives(self) -> dict[str, dict[int, Native]]:
        """Workload -> its native connections, by the cookie of its socket. Raises OSError."""

        def read() -> dict[str, dict[int, Native]]:
            owners = self._capture.owners()
            found: dict[str, dict[int, Native]] = {}
            for cookie, native in self._capture.natives().items():
                if (name := owners.get(native.owner)) is not None:
                    found.setdefault(name, {})[cookie] = native
            return found

        return await self._run(read)

    async def native_sums(self) -> dict[str, Total]:
        """Workload -> what its native connections have come to. Raises OSError."""

        def read() -> dict[str, Total]:
            owners = self._capture.owners()
            counted = sums(self._capture.native_totals())
            return {owners[owner]: total for owner, total in counted.items() if owner in owners}

        return await self._run(read)

    async def native_places(self) -> dict[tuple[str, Place], Total]:
        """The same by workload and place. Raises OSError."""

        def read() -> dict[tuple[str, Place], Total]:
            owners = self._capture.owners()
            counted = self._capture.native_totals().items()
            return {(owners[place.owner], place): total for place, total in counted if place.owner in owners}

        return await self._run(read)

    async def native_log(self, first: Sequence[int], *, wanted: bool) -> tuple[list[tuple[str, Event]], Log]:
        """What became of native connections, as it was read, and each with its workload, if that is still captured. See
        Runtime.native_log. Raises OSError."""

        def read() -> tuple[list[tuple[str, Event]], Log]:
            owners = self._capture.owners()
            found = self._capture.native_log(first, wanted=wanted)
            return [(owners[one.native.owner], one) for one in found.events if one.native.owner in owners], found

        return await self._run(read)

    async def end_native(self, captured: Captured, native: Native) -> bool:
        """Ends a native connection of the workload. False when it has ended by itself. Raises DirectError."""
        ends = (native.destination, native.source) if native.inbound else (native.source, native.destination)
        return await self._run(captured.namespace.run, lambda: end_connection(*ends, native.cookie))

    async def refresh(self) -> None:
        """See NodeCapture.refresh."""
        await self._run(self._capture.refresh)

    async def nearest(self, path: str) -> Path:
        """See NodeCapture.nearest."""
        return await self._run(self._capture.nearest, path)

    async def has_cgroup(self, path: str) -> bool:
        """See NodeCapture.has_cgroup."""
        return await self._run(self._capture.has_cgroup, path)

    async def forget(self, run_dir: Path) -> None:
        """Undoes prepare(), for a start that failed; nothing may be captured."""
        await self._run(self._capture.close)
        report = await self._run(cleanup, run_dir)
        for line in report.failed:
            log.error("%s", line)

    def close(self) -> None:
        """Waits for the call in hand and lets go; what is installed stays."""
        self._thread.shutdown(wait=True)
        if self._bypass is not None:
            self._bypass.close()
        self._capture.close()

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
