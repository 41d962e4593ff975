"""How large a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """`rate`: pods that come or go, a second; `seconds`: for how long; `plain`: the part of the pods that nobody has
    enrolled; `keys`: connections that a pod of the measured node holds, each to another destination; `own`: pods of
    that node; `probes`: new pods that are dialled, at most; `twin`: seconds without agents."""

    nodes: int = 1000
    pods: int = 50_000
    services: int = 2000
    rate: float = 20.0
    seconds: float = 300.0
    plain: float = 0.05
    keys: int = 2000
    own: int = 8
    probes: int = 60
    twin: float = 60.0


QUICK = Sizes(nodes=50, pods=1000, services=100, seconds=10.0, keys=100, own=2, probes=2, twin=5.0)
