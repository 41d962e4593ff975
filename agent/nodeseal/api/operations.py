"""The operations of the local API, carried out on a node."""

from __future__ import annotations

import os
from typing import Any

from nodeseal import __version__
from nodeseal.api import connections_view, status_view
from nodeseal.api.events_view import EventStreams
from nodeseal.api.exchange import Batches
from nodeseal.api.server import Served
from nodeseal.contracts import api
from nodeseal.contracts.connections import ConnectionFilter, Connections, Refused, RefusedFilter
from nodeseal.contracts.event_rows import EventFilter
from nodeseal.contracts.rows import Parameters
from nodeseal.contracts.status import Status
from nodeseal.cores.client import CoreError
from nodeseal.node.node import Node
from nodeseal.node.start_steps import StartingError

UNAVAILABLE = (CoreError, StartingError)
"""What passes by itself."""


def of_node(node: Node) -> list[Served[Any, Any]]:
    """Every operation but HAND_OVER, which concerns the process."""
    events = EventStreams(node)

    async def status(_parameters: Parameters) -> Status:
        return await status_view.status(node)

    async def connections(wanted: ConnectionFilter) -> Connections:
        node.starting.check()
        return await connections_view.page(node, wanted, connections_view.beginning(wanted))

    def connection_lines(wanted: ConnectionFilter) -> Batches:
        node.starting.check()
        return connections_view.listing(node, wanted, connections_view.beginning(wanted), wanted.limit)

    async def refused(wanted: RefusedFilter) -> Refused:
        node.starting.check()
        return await connections_view.refused(node, wanted)

    def event_lines(wanted: EventFilter) -> Batches:
        node.starting.check()
        return events.stream(wanted)

    async def upgrade(_parameters: Parameters) -> api.UpgradedCore:
        node.starting.check()
        return await upgrade_core(node)

    async def version(_parameters: Parameters) -> api.AgentVersion:
        return api.AgentVersion(version=__version__, pid=os.getpid())

    return [
        Served(api.STATUS, status),
        Served(api.CONNECTIONS, connections, connection_lines),
        Served(api.REFUSED, refused),
        Served(api.EVENTS, stream=event_lines),
        Served(api.UPGRADE_CORE, upgrade),
        Served(api.VERSION, version),
    ]


async def upgrade_core(node: Node) -> api.UpgradedCore:
    """See HotRestart.upgrade. Raises CoreError, UpgradeError."""
    before, core = await node.hot_restart.upgrade()
    return api.UpgradedCore(
        node=node.config.node,
        pid=core.pid,
        generation=core.generation,
        version=core.version,
        before=api.CoreNumber(pid=before.pid, generation=before.generation, version=before.version),
        workloads=sum(enrolment.installed is not None for enrolment in node.enrolments.values()),
    )
