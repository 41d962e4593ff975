"""Draws folded stacks as a flame graph: one SVG file that needs nothing else, and reads as a still picture too.

A box is a function, as wide as its share of the samples, upon the one that called it; siblings are in the order of
their names. The colour tells the module. Clicking a box widens it to the whole picture, clicking the lowest one goes
back.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from bench.stacks import GROUPS, Folded, Frame, group_of

WIDTH = 1280
ROW = 17
_MARGIN = 10
_FONT = 11
_LETTER = 6.15  # widest letter of the font stack below at this size, in px
_LINE = 16
_SMALLEST = 0.25
"""Boxes narrower than this, in px, are left out; their share stays visible as a gap."""

_COLOURS = {
    "kernel": (236, 178, 92),
    "libcrypto": (214, 96, 84),
    "libssl": (232, 148, 136),
    "nghttp2": (132, 178, 92),
    "libc": (170, 140, 205),
    "core": (98, 156, 216),
    "python": (108, 196, 196),
    "other": (186, 186, 186),
}

_SCRIPT = """
function zoom(box) {
  var x0 = +box.dataset.x, w0 = +box.dataset.w, y0 = +box.dataset.y, full = %(full)s;
  document.querySelectorAll('g.f').forEach(function (g) {
    var x = +g.dataset.x, w = +g.dataset.w, around = x <= x0 + 1e-6 && x + w >= x0 + w0 - 1e-6;
    var shown = (+g.dataset.y >= y0 && around) || (x >= x0 - 1e-6 && x + w <= x0 + w0 + 1e-6);
    g.style.display = shown ? '' : 'none';
    if (!shown) return;
    var wide = +g.dataset.y >= y0 && around;
    var left = wide ? 0 : (x - x0) / w0 * full, width = wide ? full : w / w0 * full;
    var r = g.querySelector('rect'), t = g.querySelector('text'), n = g.dataset.n;
    r.setAttribute('x', %(margin)s + left); r.setAttribute('width', Math.max(width - 0.4, 0.1));
    t.setAttribute('x', %(margin)s + left + 3);
    var room = Math.floor((width - 6) / %(letter)s);
    t.textContent = room < 3 ? '' : n.length <= room ? n : n.slice(0, room - 1) + '\\u2026';
  });
}
"""


@dataclass
class Box:
    """A function in the tree of calls. `samples`: its own and those of everything that it called."""

    frame: Frame
    samples: int = 0
    callees: dict[Frame, Box] = field(default_factory=dict)


def build_tree(folded: Folded) -> Box:
    """The tree of all stacks, under a box "all"."""
    root = Box(Frame("all", ""))
    for stack, samples in folded.items():
        box = root
        box.samples += samples
        for frame in stack:
            box = box.callees.setdefault(frame, Box(frame))
            box.samples += samples
    return root


def draw_flame_graph(folded: Folded, title: str, notes: Sequence[str] = (), unit: str = "samples") -> str:
    """The SVG. `notes`: lines under the title. `unit`: what is counted."""
    root = build_tree(folded)
    room = WIDTH - 2 * _MARGIN
    boxes = list(_place(root, 0, 0.0, room / root.samples)) if root.samples else []
    depth = max((level for _, level, _, _ in boxes), default=0) + 1
    top = _MARGIN + _LINE * (len(notes) + 3)
    height = top + depth * ROW + _MARGIN
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        f' font-family="DejaVu Sans, Verdana, Arial, sans-serif" font-size="{_FONT}">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 10}" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, note in enumerate(notes, 1):
        lines.append(f'<text x="{_MARGIN}" y="{_MARGIN + 10 + number * _LINE}" fill="#555">{escape(note)}</text>')
    lines += _legend(_MARGIN + 10 + (len(notes) + 1) * _LINE)
    for box, level, x, width in boxes:
        lines += _box(box, root.samples, unit, x, width, top + (depth - 1 - level) * ROW)
    script = _SCRIPT % {"full": room, "margin": _MARGIN, "letter": _LETTER}
    lines += [f"<script><![CDATA[{script}]]></script>", "</svg>"]
    return "\n".join(lines) + "\n"


def _place(box: Box, level: int, x: float, scale: float) -> Iterator[tuple[Box, int, float, float]]:
    """(box, level, x, width) of this box and all above it that are wide enough to be seen."""
    width = box.samples * scale
    if width < _SMALLEST:
        return
    yield box, level, x, width
    for callee in sorted(box.callees.values(), key=lambda callee: callee.frame):
        yield from _place(callee, level + 1, x, scale)
        x += callee.samples * scale


def _box(box: Box, total: int, unit: str, x: float, width: float, y: float) -> list[str]:
    name = box.frame.symbol
    module = f" ({box.frame.module})" if box.frame.module else ""
    said = escape(f"{name}{module}: {box.samples / total:.1%}, {box.samples:,} {unit}")
    letters = int((width - 6) / _LETTER)
    text = "" if letters < 3 else name if len(name) <= letters else f"{name[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"
    quoted = escape(name, {'"': "&quot;"})
    return [
        f'<g class="f" onclick="zoom(this)" data-x="{x:.3f}" data-w="{width:.3f}" data-y="{y:.0f}" data-n="{quoted}">'
        f"<title>{said}</title>"
        f'<rect x="{_MARGIN + x:.2f}" y="{y:.0f}" width="{max(width - 0.4, 0.1):.2f}" height="{ROW - 1}" rx="1.5"'
        f' fill="{_colour(box.frame)}"/>'
        f'<text x="{_MARGIN + x + 3:.2f}" y="{y + 12:.0f}">{escape(text)}</text></g>'
    ]


def _colour(frame: Frame) -> str:
    """That of the module, a little lighter or darker by the function, so that neighbours can be told apart."""
    if not frame.module:
        return "#e8e8e8"
    shade = zlib.crc32(frame.symbol.encode()) % 29 - 14
    red, green, blue = (min(255, part + shade) for part in _COLOURS[group_of(frame.module)])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _legend(y: int) -> list[str]:
    lines, x = [], float(_MARGIN)
    for group in GROUPS:
        red, green, blue = _COLOURS[group]
        lines.append(f'<rect x="{x:.0f}" y="{y - 9}" width="11" height="11" fill="rgb({red},{green},{blue})"/>')
        lines.append(f'<text x="{x + 15:.0f}" y="{y}">{group}</text>')
        x += 34 + len(group) * 7
    return lines
