"""What happens on a node, as the local API tells it; see nodeseal.contracts.rows."""

from __future__ import annotations

from typing import Literal

from nodeseal.contracts.connections import ConnectionRow, RefusedRow
from nodeseal.contracts.rows import Parameters, Row


class ReachedLimit(Row, frozen=True):
    """Connections of a workload that a limit refused."""

    limit: str = ""
    """Its name, as in the status of the workload."""
    value: int | None = None
    """Null where nobody has set it."""
    refused: int = 0
    """Since the last event of the same limit."""


class EventRow(Row, frozen=True):
    """Something that has happened to a workload of this node. A line of a stream that begins when it is asked for."""

    event: str
    """ "opened", "closed", "failed" (a connection of a workload that ended before it was open), "refused" (a peer),
    "limit", or "lost" (events that the listener was too slow for). A newer agent may have others."""
    time: str = ""
    """When it happened."""
    core: int = 0
    """The generation of the core that tells it; 0: it is about a native connection, of which no core knows."""
    workload: str | None = None
    """The workload of this node, "namespace/name"; null for one that was removed."""
    connection: ConnectionRow | None = None
    """Of "opened", "closed" and "failed": as it was at that moment."""
    refused: RefusedRow | None = None
    """Of "refused"."""
    limit: ReachedLimit | None = None
    """Of "limit"."""
    lost: int = 0
    """Of "lost": how many."""


class EventFilter(Parameters, frozen=True):
    """Which events. That some were lost is told in any case."""

    workload: str | None = None
    """Only those of this workload, "namespace/name"."""
    event: Literal["opened", "closed", "failed", "refused", "limit"] | None = None
    """Only those."""
