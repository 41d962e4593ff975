"""Processes of node1 of a lab as workloads, and what the agents show of their connections."""

from __future__ import annotations

from support.connection import endpoint
from support.host_process import Dialled, HostProcess
from support.lab import RunningLab
from support.programs import Programs

PORTS = {"vector": 9100, "registry": 5000}
"""Of the workloads on node1, by name."""
HOSTS = tuple(f"{name}:node1:{port}" for name, port in PORTS.items())
"""As a lab is asked for them."""


class Host:
    """Processes on node1 of a lab with HOSTS, ended with the test."""

    def __init__(self, lab: RunningLab, programs: Programs) -> None:
        self.lab = lab
        self.programs = programs

    def process(self, name: str = "") -> HostProcess:
        """One in the cgroup of a workload, or in none."""
        cgroup = self.lab.lab.plan.pod(name).cgroup if name else ""
        process = HostProcess(self.lab.lab.plan.node("node1").netns, cgroup)
        self.programs.at_end(process.close)
        return process

    def server(self, name: str) -> HostProcess:
        """One that serves at the workload's port."""
        process = self.process(name)
        process.listen(PORTS[name])
        return process

    @property
    def address(self) -> str:
        """The node's."""
        return self.programs.at(next(iter(PORTS)))

    def source_of(self, dialled: Dialled) -> str:
        """Where a connection of one of the processes comes from, as the agents write it."""
        return endpoint((self.address, dialled.port))
