"""What the processes of the node need beyond a pod: cover for devices that come, and for cgroups that are made anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.enrolment.workload import Enrolment
from nodeseal.linux.cgroup_watch import CgroupWatch
from nodeseal.linux.errors import LinuxError
from nodeseal.mesh.model import WorkloadName
from nodeseal.mesh.reasons import WhyNotEnrolled

log = logging.getLogger("nodeseal.agent")

_CHECK_S = 0.2


class HostWatch:
    """Sleeps while no workload is a process of the node."""

    def __init__(self, enrolments: Mapping[WorkloadName, Enrolment], capture: CaptureThread) -> None:
        self._enrolments = enrolments
        self._capture = capture
        self._has_hosts = asyncio.Event()

    def wake(self) -> None:
        """There is one now, or may be."""
        self._has_hosts.set()

    async def run(self) -> None:
        """Covers devices that come, and cgroups that are made anew when a service is started again; wakes the
        enrolments whose cgroup has come. Never ends."""
        said = ""
        with contextlib.closing(CgroupWatch()) as watch:
            while True:
                await self._has_hosts.wait()
                await watch.wait(_CHECK_S)
                try:
                    await self._look(watch)
                    said = ""
                except LinuxError as error:
                    if str(error) != said:
                        said = str(error)
                        log.error("%s; trying again", said)

    async def _look(self, watch: CgroupWatch) -> None:
        installed = False
        cgroups = set()
        for enrolment in list(self._enrolments.values()):
            wanted, failure = enrolment.wanted_state, enrolment.failure
            if enrolment.installed is not None and enrolment.installed.workload.host is not None:
                installed = True
                cgroups.add(enrolment.installed.workload.host.cgroup)
            elif wanted is not None and wanted.host is not None:
                cgroups.add(wanted.host.cgroup)
                waits = failure is not None and failure.reason is WhyNotEnrolled.CGROUP_GONE
                if waits and await self._capture.has_cgroup(wanted.host.cgroup):
                    enrolment.wake()
        if installed:
            await self._capture.refresh()
        if cgroups and self._capture.backend == "ebpf":
            watch.watch([await self._capture.nearest(cgroup) for cgroup in sorted(cgroups)])
        if not cgroups:
            watch.watch(())
            self._has_hosts.clear()
