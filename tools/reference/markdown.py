"""Markdown whose lines have at most WIDTH columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from tools.reference import fields
from tools.reference.fields import Struct

WIDTH = 110


def page(blocks: Iterable[str]) -> str:
    """The blocks with a line between them."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def paragraph(text: str) -> str:
    """Filled."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def item(text: str) -> str:
    """An item of a list, filled."""
    return textwrap.fill(
        text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """With columns as wide as what is in them."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return "".join(one for one in heading.lower().replace(" ", "-") if one.isalnum() or one in "-_")


def message(one: Struct, level: int = 3) -> list[str]:
    """A heading, what the message is, and a list of its fields."""
    return [f"{'#' * level} {one.__name__}", paragraph(fields.summary(one)), field_list(one)]


def field_list(one: Struct, *, defaults: bool = False) -> str:
    """An item for each field."""
    lines = []
    for field in fields.fields(one):
        kind = fields.type_text(field.type, link)
        default = f", default `{field.default}`" if defaults and field.default not in (None, "null") else ""
        meaning = f": {field.meaning}" if field.meaning else ""
        lines.append(item(f"`{field.name}` ({kind}{default}){meaning}"))
    return "\n".join(lines)


def link(one: Struct) -> str:
    """To the message's heading on the same page."""
    return f"[{one.__name__}](#{anchor(one.__name__)})"
