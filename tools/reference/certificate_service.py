"""docs/reference/certificate-service.md: what agents and `nodeseal ca serve` say to each other."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from nodeseal.contracts import authority
from nodeseal.contracts.authority import OPERATIONS, STATUSES, ServiceOperation, ServiceRefusal, ServiceWord
from tools.reference import fields, markdown, schemas
from tools.reference.fields import Message

MESSAGES: tuple[Message, ...] = tuple(
    dict.fromkeys(
        [one for operation in OPERATIONS for one in (operation.request, operation.answer) if one is not type(None)]
        + [ServiceRefusal]
    )
)


def page() -> str:
    """The whole page."""
    blocks = ["# The certificate service's API", markdown.docstring(authority.__doc__ or ""), "## Operations"]
    for operation in OPERATIONS:
        blocks += [f"### {operation}", markdown.paragraph(operation.summary), _parts(operation)]
    blocks += ["## Messages"]
    for message in fields.messages(*MESSAGES):
        blocks += markdown.section(message, optional=True)
    blocks += ["## Refusals", "The words of a ServiceRefusal, each with the status of the answer:"]
    words = [
        f"`{word.value}` ({STATUSES[word]})" + (f": {meaning}" if meaning else "")
        for word, meaning in _meanings().items()
    ]
    blocks.append("\n".join(map(markdown.item, words)))
    return markdown.page(blocks)


def schema() -> str:
    """Of all messages."""
    return schemas.schema("What agents and the certificate service of nodeseal say to each other", MESSAGES)


def _parts(operation: ServiceOperation[Any, Any]) -> str:
    parts = [f"Answer: {markdown.link(operation.answer)}"]
    if operation.request is not type(None):
        parts.insert(0, f"Request: {markdown.link(operation.request)}")
    if operation.proof:
        parts.append(f"The client proves itself with {operation.proof}.")
    return "\n".join(map(markdown.item, parts))


def _meanings() -> dict[ServiceWord, str]:
    """What stands below each word in its class."""
    (tree,) = ast.parse(inspect.getsource(ServiceWord)).body
    assert isinstance(tree, ast.ClassDef)
    found = dict.fromkeys(ServiceWord, "")
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(node, ast.Assign) or not isinstance(following, ast.Expr):
            continue
        assert isinstance(node.targets[0], ast.Name)
        assert isinstance(following.value, ast.Constant)
        found[ServiceWord[node.targets[0].id]] = fields.one_line(str(following.value.value))
    return found
