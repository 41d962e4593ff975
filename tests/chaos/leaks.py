"""The long form of tests/netns/test_leaks.py: a node holds the same after very many rounds as after one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from chaos.errors import ChaosError
from chaos.report import Finding, Report
from chaos.run import at_rest, differences
from nodeseal.contracts.api import UPGRADE_CORE
from nodeseal_lab import agents
from nodeseal_lab.lab import Lab
from support.pod_traffic import PodTraffic, new_marker

SETTINGS = {"settle": "100ms"}
_CONNECTIONS = 5
_SECONDS = 30.0


class Leaks:
    """Rounds on a lab of its own; what is left goes into the report's findings."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self._lab, self._report = lab, report
        self._began = time.monotonic()
        self._client, self._server = PodTraffic(lab, "comer"), PodTraffic(lab, "pipeline")
        self._address = self._server.listen()
        self._groups = 0
        self._comers = ["comer", "pipeline", *(pod.name for pod in lab.plan.pods if pod.cgroup)]

    def run(self, rounds: int, generations: int) -> None:
        """Raises ChaosError, LabError."""
        self._repeat("rounds of enrolment", rounds, self._enrolment)
        self._report.rounds = rounds
        self._repeat("core generations", generations, self._core_upgrade)
        self._report.generations = generations

    def _repeat(self, what: str, count: int, once: Callable[[], None]) -> None:
        once()
        before = at_rest(self._lab)
        for number in range(count):
            once()
            if (number + 1) % 20 == 0:
                print(f"{time.monotonic() - self._began:6.0f} s  {number + 1} {what}", file=sys.stderr, flush=True)
        for line in differences(before, at_rest(self._lab)):
            at = round(time.monotonic() - self._began, 2)
            self._report.findings.append(Finding(at, "leak", f"after {count} {what}: {line}"))

    def _enrolment(self) -> None:
        for change in (self._lab.unenrol, self._lab.enrol):
            self._talk()
            change(*self._comers)

    def _core_upgrade(self) -> None:
        for node in self._lab.plan.nodes:
            agents.ask_agent(self._lab.run_dirs[node.name], UPGRADE_CORE)
            self._talk()

    def _talk(self) -> None:
        """Some connections, from their beginning to their end."""
        self._groups += 1
        group = f"round {self._groups}"
        self._client.open(group, self._address, _CONNECTIONS, new_marker(), interval_ms=1, reply_ms=1, messages=3)
        deadline = time.monotonic() + _SECONDS
        while (counts := self._client.group(group))["closed"] < _CONNECTIONS:
            if counts["failed"] or counts["cut"] or counts["wrong"] or time.monotonic() > deadline:
                raise ChaosError(f"connections between rounds do not work: {self._client.incidents()[:1] or counts}")
            time.sleep(0.02)
