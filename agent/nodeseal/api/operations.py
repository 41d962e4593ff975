"""The operations of the local API, carried out on a node."""

from __future__ import annotations

import os
from typing import Any

from nodeseal import __version__
from nodeseal.api import connections_view, events_view, status_view
from nodeseal.api.exchange import Batches
from nodeseal.api.server import Served
from nodeseal.contracts import api, api_operations
from nodeseal.cores.client import CoreError
from nodeseal.node.node import Node
from nodeseal.node.start_steps import StartingError

UNAVAILABLE = (CoreError, StartingError)
"""What passes by itself."""


def of_node(node: Node) -> list[Served[Any, Any]]:
    """Every operation."""

    async def status(_parameters: api.Parameters) -> api.Status:
        return await status_view.status(node)

    async def connections(wanted: api.ConnectionFilter) -> api.Connections:
        node.starting.check()
        return await connections_view.page(node, wanted, connections_view.beginning(wanted))

    def connection_lines(wanted: api.ConnectionFilter) -> Batches:
        node.starting.check()
        return connections_view.listing(node, wanted, connections_view.beginning(wanted), wanted.limit)

    async def refused(wanted: api.RefusedFilter) -> api.Refused:
        node.starting.check()
        return await connections_view.refused(node, wanted)

    def event_lines(wanted: api.EventFilter) -> Batches:
        node.starting.check()
        return events_view.stream(node, wanted)

    async def upgrade_core(_parameters: api.Parameters) -> api.UpgradedCore:
        node.starting.check()
        return await node.upgrade_core()

    async def version(_parameters: api.Parameters) -> api.AgentVersion:
        return api.AgentVersion(version=__version__, pid=os.getpid())

    return [
        Served(api_operations.STATUS, status),
        Served(api_operations.CONNECTIONS, connections, connection_lines),
        Served(api_operations.REFUSED, refused),
        Served(api_operations.EVENTS, stream=event_lines),
        Served(api_operations.UPGRADE_CORE, upgrade_core),
        Served(api_operations.VERSION, version),
    ]
