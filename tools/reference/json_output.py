"""docs/reference/json-output.md: what each command prints with -o json."""

from __future__ import annotations

from nodeseal.contracts import output
from tools.reference import fields, markdown, schemas

MESSAGES = tuple(dict.fromkeys([one for several in output.COMMANDS.values() for one in several] + [output.Errors]))

_HEAD = (
    "Commands that show or change something print JSON with `-o json`: one object on standard output. Its keys are a "
    "contract with your scripts. Keys are added from version to version: pass over those that you do not know.",
    "The exit status is the same as without `-o json`. What fails is on standard error as well, one line each.",
)


def page() -> str:
    """The whole page."""
    rows = [
        (f"`nodeseal {command}`", " or ".join(map(markdown.link, several)))
        for command, several in output.COMMANDS.items()
    ]
    blocks = ["# JSON output", *map(markdown.paragraph, _HEAD), markdown.table(("command", "prints"), rows)]
    failed = f"A command that fails before it has found anything prints {markdown.link(output.Errors)}."
    blocks.append(markdown.paragraph(failed))
    for message in fields.messages(*MESSAGES):
        blocks += markdown.section(message, level=2)
    return markdown.page(blocks)


def schema() -> str:
    """Of everything that is printed."""
    return schemas.schema("What nodeseal prints with -o json", MESSAGES)
