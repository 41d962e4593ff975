"""docs/reference/local-api.md."""

from __future__ import annotations

from nodeseal.contracts import api
from nodeseal.contracts.api_operations import OPERATIONS, PAGE, PAGE_MAX, Operation
from tools.reference import fields, markdown

_HEAD = """\
The agent answers HTTP/1.1 on the Unix socket `agent.sock` in its run directory, to root and to its own user.
`curl` asks it; the host in the URL is of no meaning:"""

_EXAMPLES = """\
```sh
curl --unix-socket /run/nodeseal/agent.sock http://node/v1/status
curl --unix-socket /run/nodeseal/agent.sock 'http://node/v1/connections?live=true&workload=default/shipper'
curl --unix-socket /run/nodeseal/agent.sock -H 'Accept: application/x-ndjson' http://node/v1/connections
curl --unix-socket /run/nodeseal/agent.sock -X POST http://node/v1/core/upgrade
```"""

_RULES = (
    "Parameters stand in the query of the URL. One that an operation does not know is refused, so that no filter is "
    "passed over.",
    "An answer is a JSON object. Fields are added from version to version: pass over those that you do not know.",
    "Times are ISO 8601 in UTC. A field that ends in `_seconds` counts from the moment of the answer.",
    f"Rows come as a page: of {PAGE} if nothing is said, of at most {PAGE_MAX} with `limit`. While `next` is not null, "
    "there are more: ask again with `after` and that value. A page is of the moment in which it is asked for, so a "
    "connection that is opened meanwhile may be missing; none is there twice.",
    "With `Accept: application/x-ndjson`, or `stream=true` in the query, all rows come as JSON lines, one row a line. "
    "A line with `error` instead says what could not be listed.",
    "What fails is answered with `application/problem+json` (RFC 9457): `detail` says in one line what is wrong. The "
    "status is 400 for a parameter, 404 for an unknown operation, 503 while the agent starts or no core answers (ask "
    "again), 504 when the core does not answer in time.",
    "At most 64 clients are served at once. A client has 60 seconds to make its request, and to take what it is sent.",
)


def page() -> str:
    """The whole page."""
    blocks = ["# The local API", markdown.paragraph(_HEAD), _EXAMPLES, "\n".join(map(markdown.item, _RULES))]
    blocks += ["## Operations", _overview()]
    for operation in OPERATIONS:
        blocks += _operation(operation)
    blocks.append("## Messages")
    answers = [operation.answer for operation in OPERATIONS]
    for message in fields.messages(*answers, api.Incomplete, api.Failure):
        blocks += markdown.message(message)
    return markdown.page(blocks)


def _overview() -> str:
    rows = [
        (
            f"`{operation}`",
            ", ".join(f"`{field.name}`" for field in fields.fields(operation.parameters)) or "none",
            markdown.link(operation.answer),
            markdown.link(operation.line) if operation.line is not None else "",
        )
        for operation in OPERATIONS
    ]
    return markdown.table(("operation", "parameters", "answer", "JSON lines"), rows)


def _operation(operation: Operation[api.Parameters, api.Row]) -> list[str]:
    blocks = [f"### {operation}", markdown.paragraph(operation.summary)]
    if fields.fields(operation.parameters):
        blocks.append(markdown.field_list(operation.parameters))
    return blocks
