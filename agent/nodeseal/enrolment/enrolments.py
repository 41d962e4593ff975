"""All enrolments of a node, each with the task that drives it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping

from nodeseal.enrolment.workload import Enrolment
from nodeseal.mesh.model import Workload, WorkloadName

_STOP_TIMEOUT_S = 20.0


class Enrolments(Mapping[WorkloadName, Enrolment]):
    """By the workload's name. All methods belong to the event loop."""

    def __init__(self) -> None:
        self._enrolments: dict[WorkloadName, Enrolment] = {}
        self._drivers: dict[WorkloadName, asyncio.Task[None]] = {}
        self._stopping = False
        self._waiting: dict[WorkloadName, set[asyncio.Event]] = {}

    def __getitem__(self, name: WorkloadName) -> Enrolment:
        return self._enrolments[name]

    def __iter__(self) -> Iterator[WorkloadName]:
        return iter(self._enrolments)

    def __len__(self) -> int:
        return len(self._enrolments)

    def add(self, enrolment: Enrolment) -> None:
        """One that is not driven yet."""
        self._enrolments[enrolment.name] = enrolment
        enrolment.stepped = lambda: self._tell(enrolment.name)
        self._tell(enrolment.name)

    @contextlib.contextmanager
    def watched(self, name: WorkloadName) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of this name is added, has made a step or failed in one, or is forgotten,
        and when there is a new mesh state. Whoever waits for it clears it."""
        event = asyncio.Event()
        self._waiting.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[name]
            waiting.remove(event)
            if not waiting:
                del self._waiting[name]

    def tell_all(self) -> None:
        """There is a new mesh state."""
        for name in self._waiting:
            self._tell(name)

    def _tell(self, name: WorkloadName) -> None:
        for event in self._waiting.get(name, ()):
            event.set()

    def drive(self) -> None:
        """Drives those that are not yet driven. One that has finished is forgotten."""
        for name in list(self._enrolments):
            self._drive(name)

    def wake(self) -> None:
        """Something that concerns all has changed."""
        for enrolment in self._enrolments.values():
            enrolment.wake()

    def retry_certificates(self) -> None:
        """The issuer is another one by now, or something else is revoked: certificates that could not be renewed are
        asked for again."""
        for enrolment in self._enrolments.values():
            enrolment.certificate.retry()
            enrolment.wake()

    def wake_if_gone(self) -> None:
        """Wakes those whose network namespace is gone: a look at each costs far less than waking all."""
        for enrolment in self._enrolments.values():
            enrolment.wake_if_gone()

    def published(self) -> frozenset[Workload]:
        """Those that belong into this node's publication."""
        found = (enrolment.as_published() for enrolment in self._enrolments.values())
        return frozenset(workload for workload in found if workload is not None)

    async def stop(self) -> None:
        """Lets the steps in hand come to their end; everything stays in place."""
        self._stopping = True
        for enrolment in self._enrolments.values():
            enrolment.stop()
        drivers = list(self._drivers.values())
        if drivers:
            await asyncio.wait(drivers, timeout=_STOP_TIMEOUT_S)
        for driver in drivers:
            driver.cancel()
        await asyncio.gather(*drivers, return_exceptions=True)

    def _drive(self, name: WorkloadName) -> None:
        if name in self._drivers or self._stopping:
            return
        enrolment = self._enrolments[name]
        driver = asyncio.create_task(enrolment.drive(), name=f"enrolment {name}")
        self._drivers[name] = driver

        def done(_driver: asyncio.Task[None]) -> None:
            self._drivers.pop(name, None)
            if self._stopping:
                return
            if enrolment.finished and self._enrolments.get(name) is enrolment:
                del self._enrolments[name]
                self._tell(name)
            else:
                # It came back into the mesh state in the moment that its driver ended.
                self._drive(name)

        driver.add_done_callback(done)
