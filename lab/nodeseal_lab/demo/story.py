"""What every story of the demo has: a lab of its own, of which nothing is left at the end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from nodeseal_lab.demo.host_state import HostState, our_traces, pinned_programs, processes_of
from nodeseal_lab.demo.report import Report
from nodeseal_lab.demo.scene import Scene
from nodeseal_lab.errors import LabError
from nodeseal_lab.lab import LAB_ROOT, Lab, take_down
from nodeseal_lab.namespaces import list_namespaces
from nodeseal_lab.plan import Plan, prefix


class Story(Scene, ABC):
    """One run of a story."""

    def __init__(self, plan: Plan, report: Report) -> None:
        super().__init__(plan)
        self.report = report

    @abstractmethod
    def run(self) -> None:
        """Every step, in order. Raises CheckFailed, LabError."""

    def bring_up(self) -> float:
        """Makes the lab, without what an earlier run has left; the seconds that it took."""
        if (LAB_ROOT / self.plan.name).exists() or list_namespaces(prefix(self.plan.name)):
            self.report.say("An earlier demo was killed half way: removing what is left of it.")
            _raise_failures(take_down(self.plan.name).failures)
        self.host_before = HostState.read()
        began = time.monotonic()
        self.lab = Lab.up(self.plan)
        self.programs = pinned_programs(self.lab)
        return time.monotonic() - began

    def say_nodes(self) -> None:
        """The nodes with their pods."""
        for node in self.plan.nodes:
            pods = ", ".join(f"{pod.name} {pod.named_address}" for pod in self.plan.pods if pod.node == node.name)
            self.report.say(f"  {node.name} {', '.join(map(str, node.addresses))}   {pods}")

    def nothing_left(self, letter: str) -> None:
        """The last step."""
        report = self.report
        report.step(letter, "Cleanup: nothing is left")
        report.did("nodeseal lab down: ends the programs, runs nodeseal cleanup for each node, removes the namespaces.")
        ours = our_traces(self.lab, self.programs)
        records = list(self.lab.processes.records())
        down = take_down(self.plan.name)
        report.check(
            "lab down removes everything", not down.failures, expected="no failures", seen="; ".join(down.failures)
        )
        after = HostState.read()
        changes = self.host_before.changes(after)
        left = [change for change in changes if any(trace in change for trace in ours)]
        report.check("the host is as it was", not left, expected="no difference", seen="; ".join(left))
        processes = processes_of(self.lab, records)
        report.check("no process is left", not processes, expected="none", seen=processes)
        directory = self.lab.directory
        report.check(f"{directory} is gone", not directory.exists(), expected="gone", seen="still there")
        report.proved(
            f"{len(down.processes)} processes ended, {len(down.namespaces)} namespaces removed, {directory} is gone"
        )
        report.proved(
            f"as before ({after.size} lines compared): {', '.join(sorted(after.lines))}; no process of the demo runs"
        )
        if changes:
            report.did(f"(Changed meanwhile, not by the lab: {len(changes)} lines, the first is {changes[0]})")


def _raise_failures(failures: Sequence[str]) -> None:
    if failures:
        raise LabError(f"cannot remove an earlier demo: {failures[0]}")
