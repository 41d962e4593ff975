"""What a profile says: a table for the terminal, a text and a flame graph for each load, and a page with all of
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.flamegraph import draw_flame_graph
from bench.generator import Measured
from bench.stacks import Folded, core_functions, group_shares, top_symbols

TOP_SYMBOLS = 25
TOP_CORE_FUNCTIONS = 12

COLUMNS = (
    ("kernel", ("kernel",)),
    ("crypto", ("libcrypto", "libssl")),
    ("h2", ("nghttp2",)),
    ("libc", ("libc",)),
    ("core", ("core",)),
    ("other", ("python", "other")),
)
"""The shares of the summary, with the groups of bench.stacks that they add up."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One load. `cost`: in a word, such as "15.2 us/request". `unit`: what `folded` counts. `notes`: what a reader of
    the picture should know, a line each."""

    load: str
    peer: str
    cost: str
    folded: Folded
    unit: str
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.peer}, {self.load}: {self.cost}, {self.folded.total():,} {self.unit}"

    def shares(self) -> dict[str, float]:
        """By the names of COLUMNS; 0..1."""
        groups = group_shares(self.folded)
        return {name: sum(groups[group] for group in parts) for name, parts in COLUMNS}


def cost_of(measured: Measured) -> str:
    """The CPU time of both proxies for one of what the load consists of; of a mixture, how many CPUs they used."""
    cpu = measured.usage.total_s
    kinds = (
        (measured.requests, 1e6, "us/request"),
        (measured.connections, 1e6, "us/connection"),
        (measured.gigabytes, 1.0, "s/GB"),
    )
    present = [(amount, scale, unit) for amount, scale, unit in kinds if amount]
    if len(present) != 1:
        return f"{cpu / measured.seconds:.2f} CPUs"
    amount, scale, unit = present[0]
    return f"{cpu / amount * scale:.{2 if scale == 1 else 1}f} {unit}"


def terminal_table(profiles: Sequence[Profile]) -> str:
    """One line a load, at most 100 columns."""
    header = f"{'load':<18}{'CPU of both sides':>22}" + "".join(f"{name:>9}" for name, _ in COLUMNS)
    lines = [header]
    for profile in profiles:
        shares = profile.shares()
        line = f"{profile.load:<18}{profile.cost:>22}"
        lines.append(line + "".join(f"{shares[name]:>9.1%}" for name, _ in COLUMNS))
    return "\n".join(lines)


def load_text(profile: Profile) -> str:
    """The shares of the modules, the functions with the most time of their own, and where the core's was spent."""
    total = profile.folded.total()
    lines = [profile.title, *profile.notes, "", "Time by module, each function's own"]
    shares = sorted(group_shares(profile.folded).items(), key=lambda item: -item[1])
    lines += [f"  {share:>6.1%}  {group}" for group, share in shares if share]
    lines += ["", f"The {TOP_SYMBOLS} functions with the most time of their own"]
    for samples, frame, place in top_symbols(profile.folded, TOP_SYMBOLS):
        name = f"{frame.symbol} under {place}" if place else frame.symbol
        lines.append(f"  {samples / total:>6.1%}  {frame.module:<24} {name}")
    functions = core_functions(profile.folded, TOP_CORE_FUNCTIONS)
    if functions:
        lines += ["", "By the core's own functions: all that each did or called outside of the core"]
    for name, samples, callees in functions:
        called = ", ".join(f"{'itself' if callee == '-' else callee} {n / total:.1%}" for callee, n in callees)
        lines.append(f"  {samples / total:>6.1%}  {name:<24} {called}")
    return "\n".join(lines) + "\n"


def write_load(profile: Profile, directory: Path) -> None:
    """<load>.svg, <load>.txt, and <load>.folded: a line a stack, "outermost;...;innermost COUNT", as other programs for
    flame graphs and their differences read it."""
    directory.mkdir(parents=True, exist_ok=True)
    svg = draw_flame_graph(profile.folded, profile.title, profile.notes, profile.unit)
    (directory / f"{profile.load}.svg").write_text(svg)
    (directory / f"{profile.load}.txt").write_text(load_text(profile))
    stacks = (";".join(frame.symbol for frame in stack) + f" {count}\n" for stack, count in profile.folded.items())
    (directory / f"{profile.load}.folded").write_text("".join(sorted(stacks)))


def write_index(profiles: Sequence[Profile], directory: Path) -> Path:
    """index.html: the table, and every flame graph under it. Returns its path."""
    head = "".join(f"<th>{name}</th>" for name, _ in COLUMNS)
    rows, pictures = [], []
    for profile in profiles:
        shares = profile.shares()
        cells = "".join(f"<td>{shares[name]:.1%}</td>" for name, _ in COLUMNS)
        load = escape(profile.load)
        rows.append(f'<tr><th><a href="#{load}">{load}</a></th><td>{escape(profile.cost)}</td>{cells}</tr>')
        pictures.append(
            f'<h2 id="{load}">{escape(profile.title)}</h2>\n'
            f'<p><a href="{load}.svg">the picture alone</a>, <a href="{load}.txt">text</a></p>\n'
            f'<object type="image/svg+xml" data="{load}.svg"></object>'
        )
    common = [note for note in profiles[0].notes if all(note in other.notes for other in profiles)] if profiles else []
    notes = "<br>\n".join(map(escape, common))
    page = _PAGE.format(
        title=f"Where the time goes: {escape(profiles[0].peer if profiles else 'nothing')}",
        notes=notes,
        head=head,
        rows="\n".join(rows),
        pictures="\n".join(pictures),
    )
    path = directory / "index.html"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 "DejaVu Sans", Verdana, Arial, sans-serif; margin: 2em; color: #222; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 3px 12px; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child {{ text-align: left; }}
object {{ max-width: 100%; border: 1px solid #ddd; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{notes}</p>
<table>
<tr><th>load</th><th>CPU of both sides</th>{head}</tr>
{rows}
</table>
{pictures}
</body>
</html>
"""
