"""The figures as tables of at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.tables import aligned

Row = Sequence[str]


def terminal_report(result: Mapping[str, Any]) -> str:
    """Everything that was measured."""
    makers = (("enrol", _enrolment), ("rest", _rest), ("mesh", _mesh))
    return "\n\n".join(text for name, maker in makers if name in result for text in maker(result[name]))


def _enrolment(part: Mapping[str, Any]) -> list[str]:
    rows: list[Row] = [["", "s", "ms each", "agent ms", "core ms", "loop p99 ms", "longest", "agent MB", "after"]]
    for step in ("enrol", "unenrol"):
        one = part[step]
        rows.append(
            [
                f"{step} {part['workloads']}",
                number(one["seconds"]),
                number(one["seconds"] * 1000 / part["workloads"]),
                number(one["agent_cpu_ms_each"]),
                number(one["core_cpu_ms_each"]),
                number(one["loop_wait_ms"]["p99"]),
                number(one["loop_wait_ms"]["longest"]),
                number(one["agent_pss_before_mb"]),
                number(one["agent_pss_mb"]),
            ]
        )
    return [f"Enrolling on one node (agent and core: CPU for each workload; loop: answers of the API)\n{aligned(rows)}"]


def _rest(part: Mapping[str, Any]) -> list[str]:
    rows: list[Row] = [["", "", "agent MB", "core MB", "agent ms/s", "core ms/s"]]
    titles = {"nothing_enrolled": "nothing enrolled", "enrolled": "enrolled", "connected": "connections open"}
    for state, title in titles.items():
        for node in sorted(key for key in part[state] if key.startswith("node")):
            one = part[state][node]
            columns = ("agent_pss_mb", "core_pss_mb", "agent_cpu_ms_per_s", "core_cpu_ms_per_s")
            rows.append([title, node, *(number(one[column]) for column in columns)])
    connected = part["connected"]
    tunnels = " and ".join(f"{count} ({node})" for node, count in connected["tunnels"].items())
    note = f"{connected['connections']} connections; tunnels: {tunnels}"
    return [f"At rest (PSS; CPU for each second)\n{aligned(rows)}\n{note}"]


def _mesh(part: Mapping[str, Any]) -> list[str]:
    steps = {"apply": "all of it", "one_workload": "one workload", "one_publication": "one publication"}
    spent: list[Row] = [["", "", "s", "agent s", "core s", "agent MB", "peak", "after", "core MB", "peak", "after"]]
    felt: list[Row] = [["longest (p99), ms", "requests", "connections", "decisions", "agent's API"]]
    felt.append(["at rest", *_felt(part["at_rest"])])
    for step, title in steps.items():
        for node in sorted(key for key in part[step] if key.startswith("node")):
            one = part[step][node]
            figures = [one["seconds"], one["agent_cpu_s"], one["core_main_cpu_s"]]
            for process in ("agent", "core"):
                figures += [one[f"{process}_pss_before_mb"], one[f"{process}_peak_mb"], one[f"{process}_pss_mb"]]
            spent.append([title, node, *map(number, figures)])
        felt.append([title, *_felt(part[step]["felt"])])
    head = f"A mesh state of {part['workloads']} workloads, {part['file_mb']:.1f} MB"
    note = f"connections lost: {part['lost_connections']}"
    return [
        f"{head} (s: until the core decides by it; MB: PSS, the peak is RSS)\n{aligned(spent)}",
        f"What was felt on node 1 meanwhile\n{aligned(felt)}\n{note}",
    ]


def _felt(felt: Mapping[str, Any]) -> list[str]:
    names = ("requests_ms", "connections_ms", "decisions_ms", "loop_wait_ms")
    return [f"{number(felt[name]['longest'])} ({number(felt[name]['p99'])})" for name in names]


def number(value: float | None) -> str:
    """Three significant digits, hundreds in full."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
