"""docs/reference/core-protocol.md: what an agent and a core say to each other."""

from __future__ import annotations

import re
from typing import Any, get_args

from nodeseal.contracts import core, events, mesh
from tools.reference import fields, markdown, schemas
from tools.reference.fields import Message

ANSWERS: tuple[Message, ...] = tuple(dict.fromkeys([*map(core.answer_type, core.OPERATIONS), core.Refused]))
EVENTS: tuple[Message, ...] = (events.Told, *get_args(events.Event))
OBJECTS: tuple[Message, ...] = tuple(message.type for message in mesh.MESSAGES.values())

_NUMBERS = re.compile(r"(?<![`\w])[A-Z]+(?:_[A-Z]+)*(?!\w)")


def page() -> str:
    """The whole page."""
    blocks = ["# The core protocol", markdown.docstring(core.__doc__ or ""), "## Operations"]
    rows = [(_heading(one), markdown.link(core.answer_type(one))) for one in core.OPERATIONS]
    blocks.append(markdown.table(("operation", "answer"), [(f"[`{name}`](#{name})", answer) for name, answer in rows]))
    for one in core.OPERATIONS:
        blocks += [f"### {_heading(one)}", markdown.paragraph(fields.summary(one)), _fields(one)]
    answers = fields.messages(*ANSWERS)
    for message in fields.messages(*core.OPERATIONS):
        if message not in (*core.OPERATIONS, *answers):
            blocks += markdown.section(message, optional=True)
    blocks.append("## Answers")
    blocks.append("Each has the field `ok` beside those that are listed: `false` in [Refused](#refused), else `true`.")
    for message in answers:
        blocks += markdown.section(message, optional=True, without=("ok",))
    blocks += ["## Events", markdown.docstring(events.__doc__ or "")]
    for message in EVENTS:
        blocks += markdown.section(message, optional=True)
    blocks += ["## Mesh state", markdown.docstring(mesh.__doc__ or "")]
    for message in fields.messages(*OBJECTS):
        blocks += markdown.section(message, optional=True)
    return _NUMBERS.sub(_number, markdown.page(blocks))


def schema() -> str:
    """Of all requests, answers, events, and objects of the mesh state."""
    return schemas.schema(
        "The protocol between an agent and a core of nodeseal", (*core.OPERATIONS, *ANSWERS, *EVENTS, *OBJECTS)
    )


def _heading(request: type[core.Request[Any]]) -> str:
    return core.operation_name(request)


def _fields(request: Message) -> str:
    return markdown.field_list(request, optional=True)


def _number(match: re.Match[str]) -> str:
    """A constant of the protocol as its value."""
    value = getattr(core, match[0], None)
    if isinstance(value, range):
        return f"{value.start} to {value.stop - 1}"
    return str(value) if isinstance(value, int) else match[0]
