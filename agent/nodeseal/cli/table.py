"""Tables and sentences for a terminal, as wide as that is, and numbers as people read them.

In a pipe or a file there is no limit: a row is a line there. On a terminal nothing is cut either: what does not fit
goes on in the next line of its column, because half a reason or half an identity may be mistaken for another one.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

_GAP = "  "
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_COLUMN_MIN = 10
_USUAL = 80
_UNLIMITED = 1 << 30
# Behind one of these a cell is divided, the first of these groups that is there in the last two thirds of a line.
_DIVIDERS = (" ", "-/:.,;")

Rows = Sequence[Sequence[str]]


def width() -> int:
    """Columns of the terminal that standard output is: COLUMNS in the environment, or what the terminal says. In a
    pipe or a file more than any line has."""
    try:
        if not sys.stdout.isatty():
            return _UNLIMITED
        given = os.environ.get("COLUMNS", "")
        columns = int(given) if given.isascii() and given.isdigit() else 0
        return columns or os.get_terminal_size(sys.stdout.fileno()).columns or _USUAL
    except (OSError, ValueError, AttributeError):  # closed, or none at all
        return _UNLIMITED


def render(header: Sequence[str], rows: Rows, *, right: Iterable[int] = (), fold: Iterable[int] = ()) -> str:
    """Columns as wide as their widest cell, two blanks between them; `right` are aligned to the right.

    If that is more than the terminal has, the columns `fold` give way, the widest first: their cells go on in the next
    line, two blanks further in.
    """
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = _widths(lines)
    least = {column: max(_COLUMN_MIN, len(header[column])) for column in fold}
    excess = _total(widths) - width()
    while excess > 0:
        column = max((one for one in least if widths[one] > least[one]), key=widths.__getitem__, default=None)
        if column is None:
            break
        widths[column] -= 1
        excess -= 1
    cells = [
        tuple(_divide(cell, widths[column]) if column in least else [cell] for column, cell in enumerate(line))
        for line in lines
    ]
    # Divided between words, a column may need less than it was left.
    widths = [max(len(part) for line in cells for part in line[column]) for column in range(len(header))]
    aligned = set(right)
    return "\n".join(
        _GAP.join(
            part.rjust(room) if column in aligned else part.ljust(room)
            for column, (part, room) in enumerate(zip(parts, widths, strict=True))
        ).rstrip()
        for line in cells
        for parts in zip_longest(*line, fillvalue="")
    )


def render_first_that_fits(
    header: Sequence[str],
    variants: Iterable[Callable[[], Rows]],
    *,
    right: Iterable[int] = (),
    fold: Iterable[int] = (),
) -> str:
    """The first of `variants` (the fullest first) whose table fits; the last one is made to fit."""
    rows: Rows = []
    for variant in variants:
        rows = variant()
        if _total(_widths([header, *rows])) <= width():
            break
    return render(header, rows, right=right, fold=fold)


def note(text: str, indent: str = "  ") -> str:
    """A sentence below a table, folded where the terminal ends; a second line stands in further."""
    lines: list[str] = []
    for line in text.splitlines() or [""]:
        lines += folded(line, indent, indent + "  ") or [""]
    return "\n".join(lines)


def folded(sentence: str, first: str, rest: str) -> list[str]:
    """The lines of a sentence, behind `first` and, from the second on, `rest`. No word is divided."""
    return textwrap.wrap(
        sentence,
        width(),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def size(count: int | None) -> str:
    """Bytes: "0 B", "999 B", "1.2 kB", "105 MB"; "-" for None."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    # 999.5 kB would be written as 1000 kB.
    while value >= (999.5 if unit else 1000) and unit < len(_SIZES) - 1:
        value /= 1000
        unit += 1
    if unit == 0:
        return f"{count} B"
    return f"{value:.1f} {_SIZES[unit]}" if value < 9.95 else f"{value:.0f} {_SIZES[unit]}"


def duration(seconds: float | None) -> str:
    """ "8s", "4m12s", "3h05m", "12d"; "-" for None."""
    if seconds is None:
        return "-"
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400 * 2:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d"


def _widths(lines: Rows) -> list[int]:
    return [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _divide(text: str, room: int) -> list[str]:
    """The text in lines of at most `room`, from the second on two blanks further in."""
    lines, indent = [], ""
    while len(text) > (end := room - len(indent)):
        cuts = (max(text.rfind(one, end // 3, end) for one in group) + 1 for group in _DIVIDERS)
        cut = next(filter(None, cuts), end)
        lines.append(indent + text[:cut].rstrip())
        text, indent = text[cut:].lstrip(), "  "
    return [*lines, indent + text]
