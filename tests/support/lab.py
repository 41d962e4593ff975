"""A lab with real agents and cores, as tests see it. What tests run in its pods is in support/programs.py.

A lab takes a few seconds to come up: share one among tests that do not disturb each other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nodeseal.contracts.api import REFUSED, STATUS
from nodeseal.contracts.core import CoreStats
from nodeseal.cores.client import CoreClient
from nodeseal_lab import agents
from nodeseal_lab.errors import AgentError
from nodeseal_lab.lab import Lab, take_down
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import ISSUERS, NAMESPACE, Plan, PodRequest, TrustDomainRequest
from support.connection import endpoint
from support.core_client import ask
from support.options import NODE_RULES
from support.patience import wait_for
from support.process import end_process, nodeseal
from support.settings import add_settings, lab_settings

T = TypeVar("T")

HBONE_PORT = 15008
QUICK_SETTLE = "500ms"
"""How long workloads join and leave, where no test opens connections meanwhile. Where one does, it has to be SETTLE of
nodeseal_lab.mesh_state: a SYN that is lost is sent again after a second."""

_numbers = itertools.count()
live_labs: list[RunningLab] = []
"""The labs that are up now; see tests/netns/conftest.py."""


class RunningLab:
    """A lab that is up: `lab` is the product's own, the rest is what tests ask of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.directory = lab.directory

    def address(self, pod: str, version: int = 4) -> str:
        """The pod's address of that version of IP."""
        return next(str(one) for one in self.lab.plan.pod(pod).addresses if one.version == version)

    def identity(self, pod: str) -> str:
        """The pod's SPIFFE id."""
        return f"spiffe://{self.lab.plan.trust_domain_of(pod)}/ns/{NAMESPACE}/sa/{pod}"

    def node_of(self, pod: str) -> str:
        """The name of the pod's node."""
        return self.lab.plan.pod(pod).node

    def run(self, pod: str, function: Callable[[], T]) -> T:
        """Calls the function inside the pod's network namespace."""
        return run_in(self.lab.plan.pod(pod).netns, function)

    def run_dir(self, node: str) -> Path:
        """The run directory of the node's agent."""
        return self.lab.run_dirs[node]

    def sysctl(self, pod: str, name: str, value: str | None = None) -> str:
        """A setting of the pod's namespace ("ipv4/tcp_syncookies"), after writing it when a value is given."""

        def body() -> str:
            path = Path("/proc/sys/net", name)
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()

        return self.run(pod, body)

    # ---- what the agents say

    def status(self, node: str) -> dict[str, Any]:
        """The agent's status. Raises AgentError when it does not answer."""
        answer: dict[str, Any] = msgspec.to_builtins(agents.ask_agent(self.run_dir(node), STATUS))
        return answer

    def workload(self, pod: str) -> dict[str, Any]:
        """The pod in its agent's status."""
        row: dict[str, Any] = msgspec.to_builtins(agents.workloads_of(self.run_dir(self.node_of(pod)))[pod])
        return row

    def connections(self, node: str) -> list[dict[str, Any]]:
        """The connections of the node, as `nodeseal connections -o json` gives them."""
        rows: list[dict[str, Any]] = msgspec.to_builtins(agents.connections_of(self.run_dir(node)))
        return rows

    def refused(self, node: str, **wanted: object) -> list[dict[str, Any]]:
        """The peers that the node refused, as `nodeseal connections -o json` gives them, with these values."""
        rows: list[dict[str, Any]] = msgspec.to_builtins(agents.ask_agent(self.run_dir(node), REFUSED).refused)
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    def outbound(self, client: socket.socket) -> dict[str, Any]:
        """The row of a connection that was dialled in a pod, on the pod's own node; waits until it is there and
        decided."""
        own = client.getsockname()[0]
        node = next(pod.node for pod in self.lab.plan.pods if own in map(str, pod.addresses))
        return self.connection(node, "outbound", endpoint(client.getsockname()))

    def connection(self, node: str, direction: str, source: str) -> dict[str, Any]:
        """The latest connection that came from there, as a node's agent shows it; waits until it is there and
        decided."""

        def find() -> dict[str, Any] | None:
            rows = [row for row in self.connections(node) if (row["direction"], row["source"]) == (direction, source)]
            # An earlier one may have had the same port.
            row = min(rows, key=lambda row: row["age_seconds"] or 0.0, default=None)
            return row if row and row["state"] not in ("deciding", "connecting") else None

        return wait_for(find, f"{node} shows the connection from {source}")

    def enrolled(self, *pods: str) -> bool:
        """Whether every one of the pods is enrolled; False as well while an agent does not answer."""
        try:
            return all(self.workload(pod)["enrolled"] for pod in pods)
        except (AgentError, KeyError):
            return False

    def logs(self) -> Iterator[tuple[str, str]]:
        """(name, the last lines) of every agent's and core's log."""
        for run_dir in self.lab.run_dirs.values():
            for name in ("agent.log", "core.log"):
                with contextlib.suppress(OSError):
                    yield f"{run_dir.name}/{name}", "\n".join((run_dir / name).read_text().splitlines()[-40:])

    def core_stats(self, node: str) -> CoreStats:
        """The counters of the node's core. Raises CoreError when it does not answer."""
        return ask(self.run_dir(node), CoreClient.stats)[0]

    # ---- the nodes' processes

    def agent_pid(self, node: str) -> int:
        """The running agent. Fails the test when there is none."""
        pid = agents.agent_pid(self.run_dir(node))
        assert pid is not None, f"no agent runs on {node}"
        return pid

    def agent_runs(self, node: str) -> bool:
        """Whether there is an agent, also one that is stopped and answers nobody."""
        return agents.agent_pid(self.run_dir(node)) is not None

    def core_pids(self, node: str) -> list[int]:
        """Every core that runs, the newest first."""
        return agents.core_pids(self.run_dir(node))

    def core_pid(self, node: str) -> int:
        """The running core. Fails the test when there is none."""
        pids = agents.core_pids(self.run_dir(node))
        assert pids, f"no core runs on {node}"
        return pids[0]

    def kill_agent(self, node: str, number: int = signal.SIGKILL) -> None:
        """Signals the agent and waits until it has ended."""
        end_process(self.agent_pid(node), number)

    def kill_core(self, node: str, number: int = signal.SIGKILL) -> None:
        """Signals the core and waits until it has ended."""
        end_process(self.core_pid(node), number)

    def start_agent(self, node: str, **settings: Any) -> None:
        """Starts the node's agent, `settings` added to its configuration, and waits until it answers."""
        run_dir = self.run_dir(node)
        add_settings(run_dir / "agent.yaml", settings)
        record = agents.start_agent(self.lab.processes, self.lab.plan.node(node), run_dir)
        agents.wait_for_agents({node: run_dir}, [record])

    def start_agents(self) -> None:
        """Starts the agent of every node that has none, all at the same time, and waits until they answer."""
        missing = {name: run_dir for name, run_dir in self.lab.run_dirs.items() if not self.agent_runs(name)}
        nodes = [(self.lab.plan.node(name), run_dir) for name, run_dir in missing.items()]
        records = [agents.start_agent(self.lab.processes, node, run_dir) for node, run_dir in nodes]
        agents.wait_for_agents(missing, records)

    def restart_agent(self, node: str, number: int = signal.SIGTERM, **settings: Any) -> None:
        """kill_agent, start_agent."""
        self.kill_agent(node, number)
        self.start_agent(node, **settings)

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command line: nodeseal ARGUMENTS."""
        return nodeseal(*arguments, **options)


@contextlib.contextmanager
def running_lab(
    root: Path,
    *,
    more_pods: Sequence[str] = (),
    host_workloads: Sequence[str] = (),
    enrol: bool = True,
    with_agents: bool = True,
    with_apps: bool = False,
    supervised: bool = False,
    settings: dict[str, Any] | None = None,
    ipv6: bool = False,
    node_rules: str | None = None,
    issuer: str = ISSUERS[0],
    trust_domains: Sequence[str] = (),
) -> Iterator[RunningLab]:
    """A lab with a name of its own below `root`, gone at the end. `more_pods` as in `lab up --pod`, `host_workloads` as
    in `lab up --host-workload`; `node_rules` as in `lab up --node-rules`, None: those that were asked for; `issuer` as
    in `lab up --issuer`; `trust_domains` as in `lab up --trust-domain`; `settings` are added to the agents'
    configuration, whose `settle` is QUICK_SETTLE otherwise. An agent that ends stays away unless `supervised`."""
    name = f"t{os.getpid()}x{next(_numbers)}"
    requests = [PodRequest.parse(text) for text in more_pods]
    requests += [PodRequest.parse_host_workload(text) for text in host_workloads]
    rules = NODE_RULES.asked() if node_rules is None else node_rules
    plan = Plan.build(
        name,
        more_pods=requests,
        enrol=enrol,
        ipv6=ipv6,
        node_rules=rules,
        issuer=issuer,
        trust_domains=[TrustDomainRequest.parse(text) for text in trust_domains],
    )

    with lab_settings({"settle": QUICK_SETTLE} | (settings or {})):
        lab = Lab.up(plan, with_agents=with_agents, with_apps=with_apps, supervised=supervised, root=root)
    running = RunningLab(lab)
    live_labs.append(running)
    try:
        yield running
    finally:
        live_labs.remove(running)
        report = take_down(name, root)
    assert report.failures == (), "the lab was not taken down"
