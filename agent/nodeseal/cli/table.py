"""Tables for a terminal, at most WIDTH columns wide, and numbers as people read them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence

WIDTH = 100
_GAP = "  "
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")

Rows = Sequence[Sequence[str]]


def render(header: Sequence[str], rows: Rows, *, right: Iterable[int] = (), narrow: int | None = None) -> str:
    """Columns as wide as their widest cell, two blanks between them; `right` are aligned to the right.

    If that is more than WIDTH, the column `narrow` (or else the widest) gives way, cut with an ellipsis.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = _widths(lines)
    excess = _total(widths) - WIDTH
    while excess > 0:
        column = narrow if narrow is not None and widths[narrow] > 8 else widths.index(max(widths))
        limit = max(8, widths[column] - excess)
        for line in lines:
            line[column] = _cut(line[column], limit)
        if (now := _widths(lines)) == widths:
            break
        widths = now
        excess = _total(widths) - WIDTH
    aligned = set(right)
    return "\n".join(
        _GAP.join(
            cell.rjust(width) if column in aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def render_first_that_fits(
    header: Sequence[str],
    variants: Iterable[Callable[[], Rows]],
    *,
    right: Iterable[int] = (),
    narrow: int | None = None,
) -> str:
    """The first of `variants` (the fullest first) whose table fits; the last one is made to fit."""
    rows: Rows = []
    for variant in variants:
        rows = variant()
        if _total(_widths([header, *rows])) <= WIDTH:
            break
    return render(header, rows, right=right, narrow=narrow)


def note(text: str, indent: str = "  ") -> str:
    """A sentence below a table, folded at WIDTH; a second line stands in further."""
    lines = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(
            line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


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


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
