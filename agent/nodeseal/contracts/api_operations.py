"""The operations of the agent's local API: HTTP/1.1 on the Unix socket agent.sock of the run directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from nodeseal.contracts import api

P = TypeVar("P", bound=api.Parameters)
A = TypeVar("A", bound=api.Row)

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
    line: type[api.Row] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


STATUS = Operation(
    "GET", "/v1/status", api.Parameters, api.Status, "The state of the node, its workloads, and what is wrong."
)
CONNECTIONS = Operation(
    "GET",
    "/v1/connections",
    api.ConnectionFilter,
    api.Connections,
    "The connections of the node's workloads: through the core, and past it with the reason. Those that were closed in "
    "the last minute are among them.",
    line=api.ConnectionRow,
)
REFUSED = Operation(
    "GET", "/v1/refused", api.RefusedFilter, api.Refused, "The peers that were refused in the last day."
)
EVENTS = Operation(
    "GET",
    "/v1/events",
    api.EventFilter,
    api.EventRow,
    "What happens from now on, as JSON lines: connections that open and end, peers that are refused, limits that are "
    "reached. Cores tell it only while somebody listens.",
    line=api.EventRow,
)
UPGRADE_CORE = Operation(
    "POST",
    "/v1/core/upgrade",
    api.Parameters,
    api.UpgradedCore,
    "Starts a new core, which takes all new connections. No connection is cut. Answers when the new core serves.",
)
VERSION = Operation("GET", "/v1/version", api.Parameters, api.AgentVersion, "Which agent answers.")

OPERATIONS: tuple[Operation[Any, Any], ...] = (STATUS, CONNECTIONS, REFUSED, EVENTS, UPGRADE_CORE, VERSION)
