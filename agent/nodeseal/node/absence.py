"""The time in which no agent ran, and what should have been enrolled then."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from nodeseal.mesh.model import Mesh, WorkloadName

log = logging.getLogger("nodeseal.agent")


@dataclass(slots=True)
class Absence:
    """The time before this agent came, in which none ran (seconds since the epoch), and the workloads that should have
    been enrolled then and were not; None as long as there is no mesh state to tell."""

    begin: float
    end: float
    missed: tuple[WorkloadName, ...] | None = None

    def note(self, mesh: Mesh, node: str, adopted: Collection[WorkloadName]) -> None:
        """The first mesh state tells; `adopted`: what a former agent had enrolled."""
        if self.missed is not None:
            return
        self.missed = tuple(
            sorted(
                workload.key
                for workload in mesh.workloads.values()
                if workload.node == node and workload.wanted and workload.key not in adopted
            )
        )
        if self.missed:
            names = ", ".join(map(str, self.missed))
            log.warning("no agent ran for %.0f s: not enrolled meanwhile: %s", self.end - self.begin, names)
