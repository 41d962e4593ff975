"""Markdown whose lines have at most WIDTH columns."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence

from tools.reference import fields
from tools.reference.fields import Message

WIDTH = 110


def page(blocks: Iterable[str]) -> str:
    """The blocks with an empty line between them."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def paragraph(text: str, first: str = "", rest: str = "") -> str:
    """Filled; `first` and `rest` begin the lines."""
    text = text.replace("docs/words.md", "[words](../words.md)")
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def item(text: str) -> str:
    """An item of a list, filled."""
    return paragraph(text, "* ", "  ")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """With columns as wide as what is in them."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    texts = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines]
    texts.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(texts)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def docstring(text: str) -> str:
    """A module's text: its paragraphs are filled, what is further in stays as it is."""
    blocks = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```\n{textwrap.dedent(block)}\n```" if block.startswith("    ") else paragraph(fields.one_line(block))
        for block in blocks
    )


def link(message: Message) -> str:
    """To the message's heading on the same page."""
    return f"[{message.__name__}](#{anchor(message.__name__)})"


def section(message: Message, *, level: int = 3, optional: bool = False, without: Collection[str] = ()) -> list[str]:
    """A heading, what the message is, and its fields; see field_list()."""
    return [
        f"{'#' * level} {message.__name__}",
        paragraph(fields.summary(message)),
        field_list(message, optional=optional, without=without),
    ]


def field_list(message: Message, *, optional: bool = False, without: Collection[str] = ()) -> str:
    """An item for each field but those `without`; `optional`: which of them may be left out is said."""
    items = []
    for field in fields.fields(message):
        if field.name in without:
            continue
        kind = fields.type_text(field.type, link)
        if optional and not field.needed:
            default = fields.default_text(message, field.name)
            kind += f"; default `{default}`" if default else "; optional"
        meaning = f": {field.meaning}" if field.meaning else ""
        items.append(item(f"`{field.name}` ({kind}){meaning}"))
    return "\n".join(items)
