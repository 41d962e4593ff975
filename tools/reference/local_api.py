"""docs/reference/local-api.md: the agent's API on its Unix socket."""

from __future__ import annotations

from typing import Any

from nodeseal.api.exchange import BODY_MAX, HEAD_MAX, IDLE_S
from nodeseal.api.server import CLIENTS_MAX, STREAMS_MAX
from nodeseal.contracts.api import LINES, OPERATIONS, PAGE, PAGE_MAX, Operation
from nodeseal.contracts.rows import Failure, Incomplete
from tools.reference import fields, markdown, schemas
from tools.reference.fields import Message

MESSAGES: tuple[Message, ...] = (*(operation.answer for operation in OPERATIONS), Incomplete, Failure)

_HEAD = (
    "The agent answers HTTP/1.1 on the Unix socket `agent.sock` in its run directory, to root and to its own user. "
    "`curl` speaks it; which host stands in the URL is of no meaning:"
)
_EXAMPLES = f"""\
```sh
curl --unix-socket /run/nodeseal/agent.sock http://node/v1/status
curl --unix-socket /run/nodeseal/agent.sock 'http://node/v1/connections?live=true&workload=default/shipper'
curl --unix-socket /run/nodeseal/agent.sock -H 'Accept: {LINES}' http://node/v1/connections
curl -N --unix-socket /run/nodeseal/agent.sock http://node/v1/events
curl --unix-socket /run/nodeseal/agent.sock -X POST http://node/v1/core/upgrade
```"""
_RULES = (
    "Parameters stand in the query of the URL. One that an operation does not know is refused, so that no filter is "
    "passed over.",
    "An answer is a JSON object. Fields are added from version to version: pass over those that you do not know.",
    "Times are ISO 8601, in UTC. A field that ends in `_seconds` counts from the moment of the answer.",
    f"Connections come in pages: {PAGE:,} if nothing is said, at most {PAGE_MAX:,} with `limit`. As long as `next` is "
    "not null there are more: ask again with its value as `after`. A connection that is opened meanwhile may be "
    "missing; none is there twice.",
    f"With `Accept: {LINES}`, or `stream=true` in the query, they come all, as JSON lines: one row a line. A line with "
    "`error` says what could not be listed.",
    "Events come as JSON lines only, from the moment that they are asked for. A client that is too slow misses some, "
    "and is told how many.",
    "What fails is answered with `application/problem+json` (RFC 9457). Its `detail` says in one line what is wrong. "
    "The status is 400 for a parameter and 404 for an operation that is not known; 503 while the agent starts, or no "
    "core answers (ask again); 504 when the core does not answer in time.",
    f"At most {CLIENTS_MAX} clients are served at once, {STREAMS_MAX} of them with a stream. A client has "
    f"{IDLE_S:.0f} seconds to make a request, and to take what it is sent. A request may have a head of "
    f"{HEAD_MAX:,} bytes and a body of {BODY_MAX:,}, which is not looked at.",
)


def page() -> str:
    """The whole page."""
    blocks = ["# The local API", markdown.paragraph(_HEAD), _EXAMPLES, "\n".join(map(markdown.item, _RULES))]
    blocks += ["## Operations", _overview()]
    for operation in OPERATIONS:
        blocks += _operation(operation)
    blocks.append("## Messages")
    for message in fields.messages(*MESSAGES):
        blocks += markdown.section(message)
    return markdown.page(blocks)


def schema() -> str:
    """Of all answers and lines."""
    return schemas.schema("What the local API of nodeseal answers", MESSAGES)


def _overview() -> str:
    rows = [
        (
            f"`{operation}`",
            markdown.link(operation.answer) if operation.answer is not operation.line else "",
            markdown.link(operation.line) if operation.line is not None else "",
        )
        for operation in OPERATIONS
    ]
    return markdown.table(("operation", "answer", "lines"), rows)


def _operation(operation: Operation[Any, Any]) -> list[str]:
    blocks = [f"### {operation}", markdown.paragraph(operation.summary)]
    if fields.fields(operation.parameters):
        blocks += ["Parameters:", markdown.field_list(operation.parameters)]
    return blocks
