"""Tables: in the terminal, and in docs/performance.md between its two markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from bench.build import CHECKOUT
from bench.errors import BenchError
from bench.tables import aligned
from bench.targets import Target, targets

PAGE = CHECKOUT / "docs" / "performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

WIDTH = 108
"""Of the lines of Markdown that are no tables."""

Columns = Sequence[tuple[str, str]]

TABLES: Sequence[tuple[str, Columns]] = (
    (
        "Throughput (Gbit/s) and CPU seconds per GB of both proxies",
        (
            ("gbps_1", "1 stream"),
            ("gbps_1_down", "down"),
            ("gbps_1_up", "up"),
            ("gbps_8", "8 streams"),
            ("cpu_s_per_gb", "CPU s/GB"),
            ("cpu_user_s_per_gb", "user"),
            ("cpu_system_s_per_gb", "system"),
            ("switches_per_gb", "switches/GB"),
        ),
    ),
    (
        "Requests on open connections, closed loop (1 KiB responses)",
        (
            ("rps_c1", "req/s c=1"),
            ("p50_ms_c1", "p50 ms"),
            ("rps_c64", "req/s c=64"),
            ("p50_ms_c64", "p50 ms"),
            ("p99_ms_c64", "p99 ms"),
            ("p999_ms_c64", "p99.9 ms"),
            ("rps_c512", "req/s c=512"),
            ("p99_ms_c512", "p99 ms"),
        ),
    ),
    (
        "CPU of both proxies per request at c=64, and latency at a fixed rate",
        (
            ("us_per_request_c64", "us/req"),
            ("user_us_per_request_c64", "user"),
            ("system_us_per_request_c64", "system"),
            ("switches_per_request_c64", "switches"),
            ("p50_ms_fixed_rate", "p50 ms"),
            ("p90_ms_fixed_rate", "p90 ms"),
            ("p99_ms_fixed_rate", "p99 ms"),
            ("p999_ms_fixed_rate", "p99.9 ms"),
        ),
    ),
    (
        "New connections, one request each",
        (
            ("conns_per_s", "conn/s c=32"),
            ("conn_p50_ms", "p50 ms"),
            ("conn_p99_ms", "p99 ms"),
            ("us_per_conn", "us/conn"),
            ("conn_p50_ms_c1", "p50 ms c=1"),
            ("conn_p99_ms_c1", "p99 ms c=1"),
        ),
    ),
    (
        "Memory (PSS of both proxies, MB), and streams, requests and new connections at the same time",
        (
            ("pss_idle_mb", "idle"),
            ("pss_loaded_mb", "loaded"),
            ("idle_connections", "idle conns"),
            ("kb_per_idle_conn", "kB/conn, side"),
            ("mix_gbps", "mix Gbit/s"),
            ("mix_conns_per_s", "conn/s"),
            ("p50_ms_mix", "p50 ms"),
            ("p99_ms_mix", "p99 ms"),
        ),
    ),
)


def terminal_report(result: Mapping[str, Any]) -> str:
    """The medians as text tables."""
    medians = result["runs"]["medians"]
    parts = []
    for title, columns in TABLES:
        rows = [["", *(heading for _, heading in columns)]]
        rows += [[peer, *(_number(figures.get(name)) for name, _ in columns)] for peer, figures in medians.items()]
        parts.append(f"{title}\n{aligned(rows)}")
    rows = [["nodeseal / envoy-hbone", "ratio", "target", ""]]
    rows += [[target.name, _number(target.ratio), target.wanted, target.verdict] for target in targets(medians)]
    parts.append(aligned(rows))
    if rest := result["runs"].get("rest"):
        parts.append(_rest(rest))
    return "\n\n".join(parts)


def markdown_report(result: Mapping[str, Any], plots: Sequence[tuple[str, str]]) -> str:
    """The figures for docs/performance.md. `plots`: title and path, as seen from there."""
    runs, machine = result["runs"], result["machine"]
    lines = [
        *_paragraph(
            f"Measured on {machine['date'][:10]} at commit `{machine['commit']}`: {machine['cpus']} CPUs "
            f"({machine['cpu']}), {machine['memory_gb']:g} GB, Linux {machine['kernel']}, {machine['distribution']}. "
            f"Congestion control `{machine['congestion_control']}` in all namespaces. {runs['rounds']} rounds, "
            f"{runs['seconds']:g} s for each load after {runs['warmup']:g} s of warm-up. Medians; below the smallest "
            "and the largest round."
        ),
        "",
        "| peer | threads a side | version |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {machine['threads'][name]} | {version} |" for name, version in machine["versions"].items()]
    for title, columns in TABLES:
        medians = {
            peer: [_number(figures.get(name)) for name, _ in columns] for peer, figures in runs["medians"].items()
        }
        spread = {
            peer: [_spread(figures.get(name), runs["spread"][peer].get(name)) for name, _ in columns]
            for peer, figures in runs["medians"].items()
        }
        lines += ["", f"### {title}", "", *_table(columns, medians), "", *_table(columns, spread)]
    for title, path in plots:
        lines += ["", f"![{title}]({path})"]
    lines += ["", "### Targets", "", "| nodeseal / envoy-hbone | ratio | target | |", "|---|---|---|---|"]
    lines += [_target_row(target) for target in targets(runs["medians"])]
    if rest := runs.get("rest"):
        lines += ["", *_paragraph(_rest(rest))]
    if runs["failures"]:
        lines += ["", "Failed:"]
        for failure in runs["failures"]:
            lines += _paragraph(f"* {failure}", "  ")
    return "\n".join(lines) + "\n"


def read_page(text: str) -> dict[str, Any]:
    """What the tables of markdown_report say: {"rounds", "medians", "spread"}, as under "runs" of a result, rounded.

    Raises BenchError when a table is not there.
    """
    rounds = re.search(r"(\d+)\s+rounds,\s", text)
    if rounds is None:
        raise BenchError("docs/performance.md: it is not there how many rounds the figures are of")
    medians: dict[str, dict[str, float | None]] = {}
    spread: dict[str, dict[str, list[float]]] = {}
    for title, columns in TABLES:
        _, found, rest = text.partition(f"\n### {title}\n\n")
        if not found:
            raise BenchError(f"docs/performance.md: the table '{title}' is not there")
        first, second = (part.splitlines()[2:] for part in rest.split("\n\n", 2)[:2])
        for above, below in zip(first, second, strict=True):
            peer, *values = above.strip("|").split("|")
            _, *spreads = below.strip("|").split("|")
            for (name, _), value, between in zip(columns, values, spreads, strict=True):
                median = float(value) if value != "-" else None
                medians.setdefault(peer, {})[name] = median
                numbers = [float(number) for number in re.findall(r"[\d.]+", between)]
                spread.setdefault(peer, {})[name] = numbers or [median] * 2 if median is not None else []
    return {"rounds": int(rounds[1]), "medians": medians, "spread": spread}


def replace_between_markers(text: str, figures: str) -> str:
    """The page with new figures. Raises BenchError when a marker is not there exactly once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise BenchError(f"docs/performance.md: expected the lines '{BEGIN}' and '{END}' once each, in this order")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{figures}\n{END}{rest.partition(END)[2]}"


def write_page(path: Path, figures: str) -> None:
    """Puts the figures into the page. Raises BenchError, OSError."""
    path.write_text(replace_between_markers(path.read_text(), figures))


def _target_row(target: Target) -> str:
    return f"| {target.name} | {_number(target.ratio)} | {target.wanted} | {target.verdict} |"


def _paragraph(text: str, indent: str = "") -> list[str]:
    return wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _rest(rest: Mapping[str, Any]) -> str:
    return (
        f"nodeseal at rest, {rest['workloads_per_node']} workloads on a node: core {rest['core_pss_mb']:.1f} MB PSS "
        f"({rest['core_private_mb']:.1f} private), agent {rest['agent_pss_mb']:.1f} MB PSS "
        f"({rest['agent_private_mb']:.1f} private), {rest['cpu_ms_per_s']:.1f} ms of CPU each second."
    )


def _table(columns: Columns, rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Without spaces: nine columns fit into WIDTH."""
    head = ["peer", *(heading for _, heading in columns)]
    lines = [head, ["---"] * len(head), *([peer, *cells] for peer, cells in rows.items())]
    return [f"|{'|'.join(line)}|" for line in lines]


def _spread(value: float | None, spread: Sequence[float] | None) -> str:
    if value is None or spread is None or spread[0] == spread[1]:
        return "-"
    return f"{_number(spread[0])}–{_number(spread[1])}"


def _number(value: float | None) -> str:
    """Three significant digits, thousands in full."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
