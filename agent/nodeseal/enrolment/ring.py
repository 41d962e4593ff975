"""Who reads a workload's ring of parked SYNs: one core at a time, or none.

A ring has one reader. So the core before lets go of it first, and what comes meanwhile waits in it (a core that has
ended reads nothing either). SYNs are parked as long as there is a core to read them, or there was one and the next one
will: a core that dies leaves them where they are. A core that knows no rings accepts what is dialled at once, as it
comes; so does one that cannot be given the ring, until the next try.
"""

from __future__ import annotations

import contextlib
import logging

from nodeseal.capture.listeners import PARKED
from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.enrolment.context import Context
from nodeseal.enrolment.installed import Installed
from nodeseal.local.config import DEFAULT_CONNECT
from nodeseal.mesh.model import Connect, Workload

log = logging.getLogger("nodeseal.agent")


async def settle_ring(context: Context, installed: Installed, wanted: Workload | None) -> None:
    """Has what the workload dials parked and read by the present core, or not parked, as the mesh state and the
    configuration ask for; nothing happens if it is so. `wanted`: what the mesh state says now. Raises CoreGone,
    LinuxError.
    """
    captured = installed.captured
    reader = (context.core.incarnation, installed.key)
    parks = _is_to_park(context, installed, wanted)
    if parks and installed.reader == reader:
        await _park(context, installed, on=True)
        return
    if not parks and captured.parking:
        await _park(context, installed, on=False)
    try:
        await _take_back(context, installed)
        if parks:
            await context.core.call(CoreClient.workload_listen, installed.key, {PARKED: captured.listeners[PARKED]})
    except CoreGone:
        raise
    except CoreError as error:
        log.warning("workload %s: nothing that it dials is parked: %s", captured.target.name, error)
        await _park(context, installed, on=False)
        return
    if parks:
        installed.reader = reader
        await _park(context, installed, on=True)


def _is_to_park(context: Context, installed: Installed, wanted: Workload | None) -> bool:
    connect = (wanted or installed.workload).connect or context.connect or DEFAULT_CONNECT
    core = context.core.current
    return (
        connect is Connect.TRUTHFUL
        and PARKED in installed.captured.listeners
        and core is not None
        and core.reads_rings
        # What it dials from now on goes direct; what is parked stays so.
        and (installed.captured.parking or not installed.draining)
    )


async def _take_back(context: Context, installed: Installed) -> None:
    """Nobody reads the ring from here on."""
    if installed.reader is None:
        return
    incarnation, key = installed.reader
    if (link := context.core.link(incarnation)) is not None:
        with contextlib.suppress(CoreGone):
            await link.call(CoreClient.workload_unlisten, key, PARKED)
    installed.reader = None


async def _park(context: Context, installed: Installed, *, on: bool) -> None:
    native = on and context.native
    if (installed.captured.parking, installed.captured.native) != (on, native):
        await context.capture.park(installed.captured, on=on, native=native)
