"""The scene: many client pods on node 1, some server pods on node 2, agents on both, and connections between them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.accounting import Memory, Usage, read_memory, read_usage
from bench.bed import APP_PORT, Bed
from bench.errors import BenchError
from bench.peers.nodeseal import start_agents
from bench.scale.state import near_state
from bench.wire import REQUEST, RESPONSE_SIZE
from nodeseal.contracts.api import STATUS
from nodeseal_lab import agents
from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import WORKLOADS, write_mesh
from nodeseal_lab.plan import Pod
from nodeseal_lab.processes import ProcessRecord

SETTLE = "200ms"
WORKERS = 2
_CHANGE_SECONDS = 180.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Side:
    """The processes of one node."""

    node: str
    run_dir: Path
    agent: int
    core: int

    @property
    def log(self) -> Path:
        return self.run_dir / "agent.log"

    @property
    def core_log(self) -> Path:
        return self.run_dir / "core.log"


class Scene:
    """Made by `new_scene`. `near` is node 1 with the clients, `far` node 2 with the servers."""

    def __init__(self, bed: Bed, records: Sequence[ProcessRecord]) -> None:
        self.bed = bed
        self._records = records
        sides = []
        for node, record in zip(bed.lab.plan.nodes, records, strict=True):
            run_dir = bed.lab.run_dirs[node.name]
            cores = agents.core_pids(run_dir)
            if len(cores) != 1 or record.pid is None:
                raise BenchError(f"no core runs on {node.name}; see {run_dir}/core.log")
            sides.append(Side(node.name, run_dir, record.pid, cores[0]))
        self.near, self.far = sides
        self.connections: list[socket.socket] = []

    @property
    def mesh(self) -> Path:
        return self.bed.lab.mesh

    @property
    def clients(self) -> list[Pod]:
        return [pod for pod in self.bed.lab.plan.pods if pod.node == self.near.node]

    @property
    def servers(self) -> list[Pod]:
        return [pod for pod in self.bed.lab.plan.pods if pod.node == self.far.node]

    def want(self, names: Collection[str]) -> float:
        """Writes the mesh state in which these pods are wanted; when it was written (time.time())."""
        write_atomically(self.mesh / WORKLOADS, near_state(self.bed.lab.plan.pods, names))
        return time.time()

    def wait_enrolled(self, names: Collection[str]) -> None:
        """Waits until exactly these pods are enrolled, and nothing is left of the others. Raises LabError."""

        def settled(side: Side) -> bool:
            found = agents.workloads_of(side.run_dir)
            return all(
                pod.name in found and found[pod.name].phase == ("enrolled" if pod.name in names else "absent")
                for pod in self.bed.lab.plan.pods
                if pod.node == side.node
            )

        deadline = time.monotonic() + _CHANGE_SECONDS
        for side in (self.near, self.far):
            while not settled(side):
                if time.monotonic() > deadline:
                    raise BenchError(f"{side.node} is not settled after {_CHANGE_SECONDS:.0f} s; see {side.log}")
                # Seldom: the question is work for the agent that is measured.
                time.sleep(0.25)

    def start_servers(self) -> None:
        """A server in every pod that has none yet (the first has one from the beginning)."""
        for pod in self.servers[1:]:
            self.bed.start(pod.name, [str(self.bed.programs.serve), f"{pod.address}:{APP_PORT}"], "serve")
        for pod in self.servers:
            self.bed.wait_ready(f"{pod.address}:{APP_PORT}", REQUEST, RESPONSE_SIZE, ())

    def open_connections(self, count: int) -> None:
        """Opens connections, evenly over all pairs of a client and a server; each carries one exchange and is then left
        alone. Raises BenchError when one fails."""
        clients, servers = self.clients, self.servers
        pairs = [(client, server) for server in servers for client in clients]
        each, more = divmod(count, len(pairs))
        for number, (client, server) in enumerate(pairs):
            wanted = each + (number < more)

            def connect(wanted: int = wanted, server: Pod = server) -> list[socket.socket]:
                address = (str(server.address), APP_PORT)
                return [socket.create_connection(address, timeout=30) for _ in range(wanted)]

            opened = self.bed.run(client.name, connect)
            self.connections += opened
            for connection in opened:
                connection.sendall(REQUEST)
            for connection in opened:
                _read(connection)

    def close_connections(self) -> None:
        """Closes them all."""
        while self.connections:
            self.connections.pop().close()

    def lost(self) -> int:
        """How many of the open connections have ended."""
        ended = 0
        for connection in self.connections:
            connection.setblocking(False)
            try:
                connection.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                pass
            ended += 1
        return ended

    def tunnels(self, side: Side) -> int:
        """How many tunnels the side's workloads have, by its agent."""
        return sum(row.tunnels for row in agents.ask_agent(side.run_dir, STATUS).workloads)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one side's two processes have used at a moment."""

    agent: Usage
    core: Usage
    agent_memory: Memory
    core_memory: Memory
    core_main_s: float
    """CPU seconds of the core's main thread, which takes in what the agent sends; no other thread's work is in it."""


def read_side(side: Side) -> Reading:
    """The present accounts."""
    return Reading(
        read_usage([side.agent]),
        read_usage([side.core]),
        read_memory([side.agent]),
        read_memory([side.core]),
        # Of the process's first thread alone (Documentation/scheduler/sched-stats.rst).
        int(Path(f"/proc/{side.core}/schedstat").read_text().split()[0]) / 1e9,
    )


def reset_peak(pid: int) -> None:
    """Begins a new peak of resident memory (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def read_peak_mb(pid: int) -> float:
    """The largest resident memory since reset_peak, in 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


@contextlib.contextmanager
def new_scene(bed: Bed) -> Iterator[Scene]:
    """Starts an agent on each node, with nobody enrolled. Raises BenchError, LabError."""
    lab = bed.lab
    write_mesh(lab.mesh, lab.plan)
    write_atomically(lab.mesh / WORKLOADS, near_state(lab.plan.pods, ()))
    scene = Scene(bed, start_agents(bed, {"settle": SETTLE, "workers": WORKERS}))
    try:
        yield scene
    finally:
        scene.close_connections()


def _read(connection: socket.socket) -> None:
    missing = RESPONSE_SIZE
    while missing:
        part = connection.recv(missing)
        if not part:
            raise BenchError(f"a connection to {connection.getpeername()} was closed before it had its response")
        missing -= len(part)
