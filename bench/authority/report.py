"""The figures as tables of at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.tables import aligned


def terminal_report(result: Mapping[str, Any]) -> str:
    """Everything that was measured."""
    start, day = result["start"], result["day"]
    refused = ", ".join(f"{count:,} {word}" for word, count in sorted(start["refused"].items())) or "none"
    rows = [
        ["certificates", f"{start['certificates']:,}"],
        ["seconds to the last", f"{start['seconds']:.1f}"],
        ["certificates a second", f"{start['per_second']:,.0f}"],
        ["wait for one: half, 99 of 100, longest (s)", _waits(start)],
        ["the service's CPU for each (ms)", f"{start['service_cpu_ms_each']:.2f}"],
        ["the clients' CPU for each (ms)", f"{start['clients_cpu_ms_each']:.2f}"],
        ["the service's memory at its peak (MB)", f"{start['service_peak_mb']:.0f}"],
        ["its database (MB)", f"{start['database_mb']:.0f}"],
        ["refused and asked again", refused],
    ]
    days = [
        ["renewals", f"{day['renewals']:,}"],
        ["a second, on average", f"{day['mean']:.2f}"],
        ["a second, in the busiest five minutes", f"{day['peak']:.2f}"],
        ["busiest over average", f"{day['peak'] / day['mean']:.2f}"],
    ]
    return (
        f"{start['nodes']:,} nodes start at once (load of the machine before: {start['load_before']:.1f})\n"
        f"{aligned(rows)}\n\n"
        f"A day of renewals of {day['workloads']:,} workloads that started within a minute\n{aligned(days)}"
    )


def _waits(start: Mapping[str, Any]) -> str:
    return " ".join(f"{start[name]:.2f}" for name in ("wait_p50", "wait_p99", "wait_longest"))
