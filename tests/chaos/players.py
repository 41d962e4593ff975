"""Who takes part in a chaos run besides the lab's own pods, and who talks to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chaos.schedule import Cast

Pairs = tuple[tuple[str, str], ...]
"""(client, server)."""

_STRICT = ("siem", "shipper")


@dataclass(frozen=True, slots=True)
class Players:
    """`pods` and `host_workloads`: as `lab up --pod` and `--host-workload` take them. `comers` are un-enrolled and
    enrolled while the run lasts."""

    pods: Sequence[str]
    host_workloads: Sequence[str]
    comers: Sequence[str]
    steady: Pairs
    """Always enrolled, both: what they send is secret."""
    open: Pairs
    """One of the two is never enrolled."""
    coming: Pairs
    """One of the two comes and goes: their connections are opened while it is enrolled, and stay."""

    def cast(self) -> Cast:
        """Whom the events happen to."""
        return Cast(("node1", "node2"), self.comers, _STRICT, (*self.steady, self.open[0]))


_PODS = Players(
    pods=("comer:node1", "rover:node2", "guest:node1:plain"),
    host_workloads=(),
    comers=("comer", "rover"),
    steady=(
        ("shipper", "pipeline"),
        ("pipeline", "siem"),
        ("pipeline", "shipper"),
        ("siem", "pipeline"),
        ("shipper", "siem"),
    ),
    open=(("guest", "pipeline"), ("shipper", "intruder"), ("guest", "intruder")),
    coming=(("comer", "pipeline"), ("shipper", "rover"), ("rover", "siem")),
)
_WITH_HOSTS = Players(
    pods=_PODS.pods,
    host_workloads=("vector:node1:9100", "registry:node2:5000"),
    comers=(*_PODS.comers, "registry"),
    steady=(*_PODS.steady, ("vector", "pipeline"), ("pipeline", "vector"), ("siem", "vector")),
    open=_PODS.open,
    coming=(*_PODS.coming, ("registry", "shipper"), ("siem", "registry"), ("vector", "registry")),
)


def players(*, hosts: bool) -> Players:
    """`hosts`: with processes of the nodes themselves, which capture by iptables does not have."""
    return _WITH_HOSTS if hosts else _PODS
