"""From visits to figures: what one visit to a peer says, medians over the rounds, and how far the rounds lie apart.

Pure, and on plain JSON values, so that tables and plots can be made again from a bench.json. A figure that a peer does
not have (nothing has a CPU cost without a proxy) is None.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Figures = dict[str, float | None]
Visit = Mapping[str, Any]

SUMMARY = (
    "gbps_1", "gbps_8", "cpu_s_per_gb", "rps_c1", "rps_c64", "p50_ms_c64", "p99_ms_c64", "conns_per_s", "conn_p99_ms",
    "pss_idle_mb", "pss_loaded_mb",
)  # fmt: skip
"""The figures of "peers" in bench.json."""

_DIGITS = 4


def figures_of(visit: Visit) -> Figures:
    """All figures of one visit. Throughput of n streams is the mean of both directions, its CPU cost that of both
    together; CPU, context switches and memory are those of both proxies together."""
    loads: Mapping[str, Any] = visit["loads"]
    proxied = bool(visit["proxied"])
    figures: Figures = {}
    for streams in (1, 8):
        down, up = loads.get(f"down_{streams}"), loads.get(f"up_{streams}")
        if down and up:
            figures |= _streams(streams, down, up, proxied)
    for connections in (1, 64, 512):
        if load := loads.get(f"requests_c{connections}"):
            figures |= _requests(f"c{connections}", load, proxied)
    if load := loads.get("fixed_rate_c64"):
        figures |= _latencies("ms_fixed_rate", load["latency_ms"])
        figures["us_per_request_fixed_rate"] = _per(load["cpu_s"]["total"] * 1e6, _requests_in(load), proxied)
    if load := loads.get("connections_c32"):
        figures |= _connections(load, proxied)
    if load := loads.get("connections_c1"):
        figures["conn_p50_ms_c1"] = load["connection_latency_ms"]["p50"]
        figures["conn_p99_ms_c1"] = load["connection_latency_ms"]["p99"]
    if load := loads.get("mix"):
        figures["mix_gbps"] = load["up_gbps"] + load["down_gbps"]
        figures["mix_conns_per_s"] = load["connections_per_s"]
        figures |= _latencies("ms_mix", load["latency_ms"])
    figures |= _memory(visit, loads, proxied)
    return {name: _rounded(value) for name, value in figures.items()}


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds that have it."""
    return {name: _rounded(statistics.median(values)) if values else None for name, values in _by_name(rounds)}


def spreads(rounds: Sequence[Figures]) -> dict[str, list[float] | None]:
    """The smallest and the largest value of each figure over the rounds."""
    return {name: [min(values), max(values)] if values else None for name, values in _by_name(rounds)}


def summarise(
    visits: Iterable[Visit],
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    failures: Sequence[str],
    **more: Any,
) -> dict[str, Any]:
    """The content of bench.json: {"peers": {name: SUMMARY}, "runs": {...}, "machine": {...}}.

    "runs" has the settings, every visit, what failed, and for all figures "medians" and "spread" (smallest,
    largest)."""
    visits = list(visits)
    rounds: dict[str, list[Figures]] = {}
    for visit in visits:
        rounds.setdefault(visit["peer"], []).append(figures_of(visit))
    middle = {peer: medians(figures) for peer, figures in rounds.items()}
    return {
        "peers": {peer: {name: figures.get(name) for name in SUMMARY} for peer, figures in middle.items()},
        "runs": {
            **settings,
            "failures": list(failures),
            "medians": middle,
            "spread": {peer: spreads(figures) for peer, figures in rounds.items()},
            **more,
            "visits": visits,
        },
        "machine": dict(machine),
    }


def _streams(streams: int, down: Mapping[str, Any], up: Mapping[str, Any], proxied: bool) -> Figures:
    both = (down, up)
    gigabytes = sum((load["down_gbps"] + load["up_gbps"]) / 8 * load["seconds"] for load in both)
    end = "" if streams == 1 else f"_{streams}"
    return {
        f"gbps_{streams}": (down["down_gbps"] + up["up_gbps"]) / 2,
        f"gbps_{streams}_down": down["down_gbps"],
        f"gbps_{streams}_up": up["up_gbps"],
        f"cpu_s_per_gb{end}": _per(sum(load["cpu_s"]["total"] for load in both), gigabytes, proxied),
        f"cpu_user_s_per_gb{end}": _per(sum(load["cpu_s"]["user"] for load in both), gigabytes, proxied),
        f"cpu_system_s_per_gb{end}": _per(sum(load["cpu_s"]["system"] for load in both), gigabytes, proxied),
        f"switches_per_gb{end}": _per(sum(_switches(load) for load in both), gigabytes, proxied),
    }


def _requests(name: str, load: Mapping[str, Any], proxied: bool) -> Figures:
    count = _requests_in(load)
    return {
        f"rps_{name}": load["requests_per_s"],
        **_latencies(f"ms_{name}", load["latency_ms"]),
        f"us_per_request_{name}": _per(load["cpu_s"]["total"] * 1e6, count, proxied),
        f"user_us_per_request_{name}": _per(load["cpu_s"]["user"] * 1e6, count, proxied),
        f"system_us_per_request_{name}": _per(load["cpu_s"]["system"] * 1e6, count, proxied),
        f"switches_per_request_{name}": _per(_switches(load), count, proxied),
    }


def _connections(load: Mapping[str, Any], proxied: bool) -> Figures:
    count = load["connections_per_s"] * load["seconds"]
    return {
        "conns_per_s": load["connections_per_s"],
        "conn_p50_ms": load["connection_latency_ms"]["p50"],
        "conn_p99_ms": load["connection_latency_ms"]["p99"],
        "us_per_conn": _per(load["cpu_s"]["total"] * 1e6, count, proxied),
        "user_us_per_conn": _per(load["cpu_s"]["user"] * 1e6, count, proxied),
        "system_us_per_conn": _per(load["cpu_s"]["system"] * 1e6, count, proxied),
    }


def _memory(visit: Visit, loads: Mapping[str, Any], proxied: bool) -> Figures:
    if not proxied:
        return {"pss_idle_mb": None, "pss_loaded_mb": None}
    idle = visit["memory"]["idle_mb"]
    figures: Figures = {
        "pss_idle_mb": idle,
        "pss_loaded_mb": max([idle, *(load["pss_mb"] for load in loads.values())]),
        "pss_helpers_mb": visit["memory"]["helpers_mb"],
    }
    if holding := visit.get("holding"):
        figures["idle_connections"] = holding["connections"]
        figures["kb_per_idle_conn"] = holding["kb_per_connection"]
        figures["cpu_ms_per_s_idle_conns"] = holding["cpu_ms_per_s"]
    return figures


def _latencies(name: str, percentiles: Mapping[str, float | None]) -> Figures:
    return {f"{percentile.replace('.', '')}_{name}": value for percentile, value in percentiles.items()}


def _requests_in(load: Mapping[str, Any]) -> float:
    return float(load["requests_per_s"] * load["seconds"])


def _switches(load: Mapping[str, Any]) -> float:
    return float(load["switches"]["voluntary"] + load["switches"]["involuntary"])


def _per(amount: float, count: float, proxied: bool) -> float | None:
    return amount / count if proxied and count else None


def _by_name(rounds: Sequence[Figures]) -> Iterable[tuple[str, list[float]]]:
    names = dict.fromkeys(name for figures in rounds for name in figures)
    for name in names:
        yield name, [value for figures in rounds if (value := figures.get(name)) is not None]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
