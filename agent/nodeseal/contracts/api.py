"""The operations of the agent's local API: HTTP/1.1 on the Unix socket agent.sock of the run directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from nodeseal.contracts.connections import ConnectionFilter, ConnectionRow, Connections, Refused, RefusedFilter
from nodeseal.contracts.event_rows import EventFilter, EventRow
from nodeseal.contracts.rows import Parameters, Row
from nodeseal.contracts.status import Status

P = TypeVar("P", bound=Parameters)
A = TypeVar("A", bound=Row)

JSON = "application/json"
LINES = "application/x-ndjson"
FAILURE = "application/problem+json"

PAGE = 1000
"""How many rows an answer has if nothing is said of it."""
PAGE_MAX = 2000
"""How many it may have."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[P, A]):
    """`parameters`: what its query may say; `answer`: the body; `line`: what a line is, if the answer may be a stream
    of JSON lines (the same as `answer`: it is never anything else); `summary`: one sentence for the reference."""

    method: Literal["GET", "POST"]
    path: str
    parameters: type[P]
    answer: type[A]
    summary: str
    line: type[Row] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class CoreNumber(Row, frozen=True):
    """One core of a node."""

    pid: int = 0
    generation: int = 0
    version: str = ""


class UpgradedCore(Row, frozen=True):
    """A new core has taken over."""

    node: str
    pid: int = 0
    generation: int = 0
    version: str = ""
    before: CoreNumber = CoreNumber()
    """The core that it took over from, which finishes its connections."""
    workloads: int = 0
    """How many it has."""


class HandedOver(Row, frozen=True):
    """The agent that answers lets go of the node."""

    node: str
    version: str = ""
    pid: int = 0


class AgentVersion(Row, frozen=True):
    """Who answers."""

    version: str = ""
    pid: int = 0


STATUS = Operation("GET", "/v1/status", Parameters, Status, "The state of the node, its workloads, and what is wrong.")
CONNECTIONS = Operation(
    "GET",
    "/v1/connections",
    ConnectionFilter,
    Connections,
    "The connections of the node's workloads: through the core, and past it with the reason. Those that were closed in "
    "the last minute are among them.",
    line=ConnectionRow,
)
REFUSED = Operation("GET", "/v1/refused", RefusedFilter, Refused, "The peers that were refused in the last day.")
EVENTS = Operation(
    "GET",
    "/v1/events",
    EventFilter,
    EventRow,
    "What happens from now on, as JSON lines: connections that open and end, peers that are refused, limits that are "
    "reached. Cores tell it only while somebody listens.",
    line=EventRow,
)
UPGRADE_CORE = Operation(
    "POST",
    "/v1/core/upgrade",
    Parameters,
    UpgradedCore,
    "Starts a new core, which takes all new connections. No connection is cut. Answers when the new core serves.",
)
VERSION = Operation("GET", "/v1/version", Parameters, AgentVersion, "Which agent answers.")
HAND_OVER = Operation(
    "POST",
    "/v1/agent/hand-over",
    Parameters,
    HandedOver,
    "Has this agent let go of the node for another one, which waits for the lock agent.lock. It answers at once, and "
    "stands by afterwards. Needs `hand_over: true`.",
)

OPERATIONS: tuple[Operation[Any, Any], ...] = (STATUS, CONNECTIONS, REFUSED, EVENTS, UPGRADE_CORE, VERSION, HAND_OVER)
