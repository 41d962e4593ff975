"""The lab's side of its nodes' agents: start, ask, wait for, clean up after."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from nodeseal.api import client
from nodeseal.contracts.api import STATUS, Operation
from nodeseal.contracts.connections import ConnectionFilter, ConnectionRow
from nodeseal.contracts.rows import Parameters, Row
from nodeseal.contracts.status import Status, WorkloadRow
from nodeseal.linux import lock_file
from nodeseal.local import generations, run_directory
from nodeseal_lab.errors import AgentError, LabError
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import NAMESPACE, Node, Pod
from nodeseal_lab.processes import ProcessRecord, ProcessTable, child_environment, start_time

Condition = Callable[[WorkloadRow], bool]
P = TypeVar("P", bound=Parameters)
A = TypeVar("A", bound=Row)

READY_SECONDS = 30.0
CHANGE_SECONDS = 20.0
CLEANUP_SECONDS = 60.0
POLL_SECONDS = 0.05
REQUEST_SECONDS = 5.0
AGENT_COMMAND: Sequence[str] = (sys.executable, "-m", "nodeseal", "agent")


def role_of(node: str) -> str:
    """What the record of a node's agent says that it is for."""
    return f"agent {node}"


def start_agent(table: ProcessTable, node: Node, run_dir: Path, argv: Sequence[str] | None = None) -> ProcessRecord:
    """Starts the agent in its node's namespace (the network one only: it must see the host's mounts), `argv` being the
    command of the one before it, if there was one."""
    argv = argv or [*AGENT_COMMAND, "--config", str(run_dir / "agent.yaml")]
    return table.start(role_of(node.name), argv, netns=node.netns, output=run_dir / "agent.log")


def ask_agent(run_dir: Path, operation: Operation[P, A], parameters: P | None = None) -> A:
    """One request to the agent's local API. Raises AgentError when it does not answer."""
    try:
        return client.ask(run_dir, operation, parameters)
    except client.AgentError as error:
        raise AgentError(str(error)) from error


def connections_of(run_dir: Path) -> list[ConnectionRow]:
    """The connections of the node. Raises AgentError."""
    try:
        return client.ask_connections(run_dir, ConnectionFilter()).connections
    except client.AgentError as error:
        raise AgentError(str(error)) from error


def workloads(status: Status) -> dict[str, WorkloadRow]:
    """The workloads in an agent's status, by pod name."""
    return {workload.workload.removeprefix(f"{NAMESPACE}/"): workload for workload in status.workloads}


def workloads_of(run_dir: Path) -> dict[str, WorkloadRow]:
    """The workloads that the agent knows, by pod name. Raises AgentError."""
    return workloads(ask_agent(run_dir, STATUS))


def wait_for_epoch(run_dir: Path, epoch: int) -> None:
    """Waits until the node's core has a mesh state of this epoch or a later one. Raises AgentError."""
    deadline = time.monotonic() + CHANGE_SECONDS
    while (status := ask_agent(run_dir, STATUS)).mesh.epoch < epoch:
        if time.monotonic() > deadline:
            why = status.mesh.error or status.core.error or "see its log"
            raise AgentError(f"the core of {run_dir.name} has not taken the change: {why}")
        time.sleep(POLL_SECONDS)


def wait_for_workloads(
    run_dirs: Mapping[str, Path],
    pods: Sequence[Pod],
    holds: Condition,
    what: str,
    *,
    seconds: float | None = None,
    agents: Sequence[ProcessRecord] = (),
) -> None:
    """Waits until `holds(status of the workload)` for every pod, each asked of its node's agent.

    `seconds`: CHANGE_SECONDS unless given. Raises AgentError that says which pods are not there and what their agents
    say of them, or at once when one of `agents` has ended."""
    seconds = CHANGE_SECONDS if seconds is None else seconds
    deadline = time.monotonic() + seconds
    while True:
        waiting = _waiting(run_dirs, pods, holds)
        if not waiting:
            return
        for agent in agents:
            if not agent.alive:
                node = agent.role.removeprefix("agent ")
                raise AgentError(f"the agent of {node} ended: {_last_line(run_dirs[node] / 'agent.log')}")
        if time.monotonic() > deadline:
            raise AgentError(f"not {what} after {seconds:.0f} s: {'; '.join(waiting)}")
        time.sleep(POLL_SECONDS)


def wait_for_agents(run_dirs: Mapping[str, Path], agents: Sequence[ProcessRecord]) -> None:
    """Waits until every agent has started. Raises AgentError, at once when one has ended."""
    deadline = time.monotonic() + READY_SECONDS
    for agent in agents:
        node = agent.role.removeprefix("agent ")
        while True:
            try:
                if ask_agent(run_dirs[node], STATUS).agent.starting is None:
                    break
                if time.monotonic() > deadline:
                    raise AgentError(f"the agent of {node} is still starting: see {run_dirs[node] / 'agent.log'}")
            except AgentError as error:
                if not agent.alive:
                    last = _last_line(run_dirs[node] / "agent.log")
                    raise AgentError(f"the agent of {node} ended: {last}") from error
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)


def wait_for_listener(pod: Pod, port: int, log: Path) -> None:
    """Waits until a program in the pod accepts connections (to its own address, which never leaves the pod).

    Raises LabError with the last line of its log."""
    deadline = time.monotonic() + READY_SECONDS

    def connect() -> bool:
        try:
            socket.create_connection((str(pod.address), port), timeout=REQUEST_SECONDS).close()
        except OSError:
            return False
        return True

    while not run_in(pod.netns, connect):
        if time.monotonic() > deadline:
            raise LabError(f"nothing listens on port {port} in pod {pod.name}: {_last_line(log)}")
        time.sleep(POLL_SECONDS)


def core_pids(run_dir: Path) -> list[int]:
    """The splice cores of a node, the newest first; empty when none runs."""
    return list(generations.running(run_dir).values())[::-1]


def agent_pid(run_dir: Path) -> int | None:
    """The agent of a node, or None when it does not run."""
    return lock_file.holder(run_dir / run_directory.AGENT_LOCK)


def restarted_agents(run_dirs: Sequence[Path], known: Sequence[ProcessRecord]) -> list[ProcessRecord]:
    """The agents that somebody started again by hand, so that no record is kept of them."""
    pids = {record.pid for record in known}
    return [
        ProcessRecord("", f"agent {run_dir.name}", (), pid, start_time(pid))
        for run_dir in run_dirs
        if (pid := agent_pid(run_dir)) is not None and pid not in pids
    ]


def cleanup_nodes(run_dirs: Sequence[Path]) -> list[str]:
    """Runs `nodeseal cleanup` for every run directory, all at the same time. Returns one line per failure."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "nodeseal", "cleanup", "--run-dir", str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment(),
            text=True,
        )
        for run_dir in run_dirs
    ]
    failures = []
    for run_dir, child in zip(run_dirs, children, strict=True):
        try:
            _, errors = child.communicate(timeout=CLEANUP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            errors = f"not done after {CLEANUP_SECONDS:.0f} s"
        if child.returncode != 0:
            last = errors.strip().splitlines()[-1] if errors.strip() else f"exit status {child.returncode}"
            failures.append(f"cleanup of {run_dir}: {last}")
    return failures


def _waiting(run_dirs: Mapping[str, Path], pods: Sequence[Pod], holds: Condition) -> list[str]:
    waiting = []
    statuses: dict[str, dict[str, WorkloadRow] | LabError] = {}
    for pod in pods:
        if pod.node not in statuses:
            try:
                statuses[pod.node] = workloads_of(run_dirs[pod.node])
            except AgentError as error:
                statuses[pod.node] = error
        status = statuses[pod.node]
        if isinstance(status, LabError):
            waiting.append(f"{pod.name}: {status}")
        elif pod.name not in status:
            waiting.append(f"{pod.name}: unknown to the agent of {pod.node}")
        elif not holds(status[pod.name]):
            workload = status[pod.name]
            why = workload.detail or workload.reason or workload.phase
            waiting.append(f"{pod.name}: {why}")
    return waiting


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1]} ({path})" if lines else f"it wrote nothing to {path}"
