"""What nodeseal has set itself, against Envoy's HBONE in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.figures import Figures

OURS, MEASURE = "nodeseal", "envoy-hbone"
DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Target:
    """`ratio`: nodeseal's figure divided by Envoy HBONE's, or None when it was not measured."""

    name: str
    ratio: float | None
    limit: float
    at_least: bool

    @property
    def reached(self) -> bool | None:
        if self.ratio is None:
            return None
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    @property
    def wanted(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"

    @property
    def verdict(self) -> str:
        return {None: "not measured", True: "reached", False: "missed"}[self.reached]


def targets(medians: Mapping[str, Figures]) -> list[Target]:
    """The targets, from the medians of all figures of each peer."""
    ours, measure, direct = (medians.get(name, {}) for name in (OURS, MEASURE, DIRECT))

    def ratio(name: str) -> float | None:
        return _divided(ours.get(name), measure.get(name))

    def added(figures: Figures) -> float | None:
        whole, floor = figures.get("p50_ms_c1"), direct.get("p50_ms_c1")
        return whole - floor if whole is not None and floor is not None else None

    return [
        Target("Gbit/s, one stream", ratio("gbps_1"), 1.3, True),
        Target("CPU s/GB, both sides", ratio("cpu_s_per_gb"), 0.75, False),
        Target("requests/s, c=64", ratio("rps_c64"), 1.3, True),
        Target("p99, c=64", ratio("p99_ms_c64"), 0.7, False),
        Target("added latency, c=1", _divided(added(ours), added(measure)), 0.75, False),
        Target("new connections/s", ratio("conns_per_s"), 2.0, True),
        Target("p99 of a new connection", ratio("conn_p99_ms"), 0.6, False),
    ]


def _divided(amount: float | None, by: float | None) -> float | None:
    return amount / by if amount is not None and by else None
