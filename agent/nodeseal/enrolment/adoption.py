"""What a former agent left in capture and cores, taken over; what only one of them has is brought in line."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace

from nodeseal.capture.listeners import FROM_OUTSIDE, PARKED
from nodeseal.capture.workload import Captured
from nodeseal.cores.client import CoreClient, CoreError, CoreGone, CoreWorkload
from nodeseal.cores.distribution import MeshPusher
from nodeseal.cores.link import CoreLink
from nodeseal.enrolment.context import Context
from nodeseal.enrolment.installed import Installed
from nodeseal.enrolment.workload import Enrolment
from nodeseal.linux.control_socket import close_all
from nodeseal.mesh.model import Mesh, Mode, OnFailure, Phase, Workload, WorkloadName

log = logging.getLogger("nodeseal.agent")


class Adoption:
    """For an agent that begins: the cores are there, capture is prepared, and nothing is driven yet."""

    def __init__(self, node: str, context: Context, current: CoreLink) -> None:
        """`current`: the current core."""
        self._node = node
        self._context = context
        self._current = current
        self._hellos = [current.hello, *(link.hello for link in context.core.older)]

    @property
    def first_key(self) -> int:
        """The first key from which on no core knows any."""
        return max((workload.key for hello in self._hellos for workload in hello.workloads), default=0) + 1

    async def mesh(self, distribution: MeshPusher) -> Mesh | None:
        """The mesh that the cores decide by, of which the distribution is told; None when none of them knows. It is the
        last good state, until the source has one. Raises CoreError."""
        # A core that has just been started knows nothing, an older one may. (Its protocol may be another.)
        epoch = self._current.hello.epoch
        readable = next((link for link in self._context.core.links()[::-1] if link.hello.epoch), None)
        if epoch:
            readable = self._current
        known = await readable.call(CoreClient.mesh_read) if readable is not None else None
        of_current = known if readable is self._current else None
        distribution.adopt(of_current, epoch, max(hello.epoch for hello in self._hellos))
        if known is not None:
            distribution.mesh = known
        return known

    async def enrolments(self, known: Mesh | None) -> AsyncIterator[Enrolment]:
        """What is captured, one after the other; `known`: the mesh state. Raises CoreError, LinuxError."""
        in_core = {workload.name: workload for workload in self._current.hello.workloads}
        for captured in await self._context.capture.adopt():
            name = WorkloadName.parse(captured.target.name)
            yield await self._adopt(name, captured, in_core.pop(name, None), known)
        for leftover in in_core.values():
            log.warning("the core's workload %s is not captured: removed", leftover.name)
            await self._context.core.call(CoreClient.workload_remove, leftover.key)

    async def _adopt(
        self, name: WorkloadName, captured: Captured, in_core: CoreWorkload | None, known: Mesh | None
    ) -> Enrolment:
        core = self._context.core
        workload = known.workloads.get(name) if known is not None else None
        if workload is None or workload.addresses != captured.target.addresses:
            account = in_core.identity.service_account if in_core is not None else "default"
            target = captured.target
            workload = Workload(name, account, self._node, target.addresses, target.netns, True, Mode.PERMISSIVE)
        # What is in force: so that what the mesh state says otherwise by now is seen.
        on_failure = OnFailure.OPEN if captured.target.open_on_failure else OnFailure.CLOSED
        workload = replace(workload, host=captured.target.host, on_failure=on_failure)
        identity = in_core.identity if in_core is not None else workload.identity(self._context.node.trust_domain)
        installed = Installed(workload, 0, identity, captured, 0)
        given: dict[int, int] = {}
        if in_core is not None and not captured.takes(in_core.addresses):
            await core.call(CoreClient.workload_remove, in_core.key)
        elif in_core is not None:
            if in_core.addresses != captured.target.addresses:
                # The former agent may have ended before it said so.
                await core.call(CoreClient.workload_addresses, in_core.key, captured.target.addresses)
            installed.key, installed.incarnation = in_core.key, core.incarnation
            given = await core.call(CoreClient.listeners, in_core.key)
            installed.roles = set(given)
            if captured.phase == "leaving":
                # The former agent may have ended before it said so.
                await core.call(CoreClient.workload_unlisten, in_core.key, *FROM_OUTSIDE)
                installed.roles -= set(FROM_OUTSIDE)
            if PARKED in given:
                installed.reader = (core.incarnation, in_core.key)
        if installed.reader is None:
            installed.reader = self._reader_of_older(name)
        if PARKED in await self._take_listeners(name, captured, given) and installed.reader is not None:
            # It has another ring than the programs: nothing comes in there any more.
            link = core.link(installed.reader[0])
            if link is not None:
                with contextlib.suppress(CoreGone):
                    await link.call(CoreClient.workload_unlisten, installed.reader[1], PARKED)
            installed.reader = None
        wanted = known.workloads.get(name) if known is not None else None
        if wanted is not None and wanted.node != self._node:
            wanted = None
        enrolment = Enrolment(name, self._context, replace(wanted, phase=Phase.ABSENT) if wanted else None, installed)
        phase = workload.phase
        if captured.phase == "leaving":
            phase = Phase.LEAVING
        elif phase is Phase.ABSENT:
            phase = Phase.JOINING
        enrolment.adopt_phase(phase)
        log.info("adopted workload %s, %s, key %d", name, phase.value, installed.key)
        return enrolment

    def _reader_of_older(self, name: WorkloadName) -> tuple[int, int] | None:
        """The older core that reads the workload's ring; see Installed."""
        for link in self._context.core.older[::-1]:
            for workload in link.hello.workloads:
                if workload.name == name and PARKED in workload.roles:
                    return link.incarnation, workload.key
        return None

    async def _take_listeners(self, name: WorkloadName, captured: Captured, given: dict[int, int]) -> list[int]:
        """`given`: the current core's; they are closed. The roles of those that are new."""
        for role, fd in (await self._listeners_of_older(name)).items():
            # The very sockets that an older core still accepts from: what waits in them is not lost.
            if role in given:
                os.close(fd)
            else:
                given[role] = fd
        try:
            return await self._context.capture.take_listeners(captured, given)
        finally:
            close_all(given.values())

    async def _listeners_of_older(self, name: WorkloadName) -> dict[int, int]:
        for link in self._context.core.older[::-1]:
            for workload in link.hello.workloads:
                if workload.name == name and workload.roles and not link.retired:
                    with contextlib.suppress(CoreError):
                        return await link.call(CoreClient.listeners, workload.key)
        return {}
