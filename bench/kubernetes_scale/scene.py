"""Two real nodes in the large cluster, and what is measured of them.

node1   the measured agent and core; its pods hold connections
node2   another agent, whose pods come one after the other and are dialled by one of node1's
world   has the addresses of all other pods: whoever is dialled in plaintext answers
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.accounting import family, read_memory, read_usage
from bench.build import CHECKOUT
from bench.errors import BenchError
from bench.kubernetes_scale import generator
from bench.kubernetes_scale.population import RANGE, Population
from bench.kubernetes_scale.sizes import Sizes
from bench.scale.scene import read_peak_mb, reset_peak
from nodeseal import __version__
from nodeseal.api import client
from nodeseal.contracts.connections import ConnectionFilter
from nodeseal.mesh.trust import digest_of
from nodeseal_lab.agents import core_pids

sys.path.insert(0, str(CHECKOUT / "tests"))  # where a real API server is started

from support.anchors import make_ca, root_of
from support.connection import echo, echoes
from support.manifests import Cluster, rendered
from support.patience import wait_for
from support.played_agent import PlayedAgent, has_kinds
from support.played_node import PlayedCluster, PlayedPod
from support.pods import compiled
from support.server import Server

Say = Callable[[str], None]

_PORT = 8080
_WORLD = 250
_PATIENCE_S = 600.0
_SAMPLE_S = 2.0
_DIAL_S = 0.05
_NAMESPACE = "measured"


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds and the clock at a moment."""

    at: float
    cpu: Mapping[str, float]


class Scene:
    """Made by `new_scene`."""

    def __init__(self, cluster: PlayedCluster, directory: Path, sizes: Sizes, say: Say) -> None:
        self._cluster = cluster
        self._directory = directory
        self._sizes = sizes
        self._say = say
        self._ca = make_ca(directory / "ca", trust_domain="cluster.local")
        self._held: list[socket.socket] = []
        self._accepted: list[socket.socket] = []
        self._stack = contextlib.ExitStack()
        self._generator: subprocess.Popen[str] | None = None
        self.plain: list[str] = []

    def close(self) -> None:
        """Nothing is left."""
        for one in (*self._held, *self._accepted):
            one.close()
        if self._generator is not None:
            self._generator.kill()
            self._generator.wait()
        self._stack.close()

    # ---- making it

    def fill(self) -> dict[str, Any]:
        """The cluster as it is before the agents come. Raises BenchError."""
        cluster, server = self._cluster, self._cluster.server
        Cluster(server).apply(rendered({"namespace": {"create": True}}))
        wait_for(lambda: has_kinds(cluster), "the API server knows nodeseal's kinds")
        for name in sorted(Population(self._sizes).namespaces):
            enrolled = {} if name.startswith("plain") else {"enrol": "true"}
            cluster.make_namespace(name, **enrolled)
        cluster.make_namespace(_NAMESPACE, enrol="true")
        self._world()
        access = server.access()
        order = generator.Order(
            server=access.server,
            ca=str(access.ca),
            token=str(access.token),
            etcd=server.etcd,
            watched="node1",
            digest=digest_of(root_of(self._ca).key),
            version=__version__,
            sizes=self._sizes,
        )
        command = [sys.executable, "-m", generator.__name__, msgspec.json.encode(order).decode()]
        self._generator = server.namespace.popen(
            "nice", "-n", "5", *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT, bufsize=1
        )
        filled = self._answer(_PATIENCE_S * 2)
        self.plain = filled.pop("plain")
        return filled | {"objects": self._objects()}

    def agents(self) -> dict[str, Any]:
        """Starts them; how long the measured one takes from nothing, and from what it has saved."""
        programs = self._directory / "compiled.json"
        programs.write_text(compiled().to_json())
        one, two = (
            PlayedAgent(self._cluster, self._cluster.node(number), self._directory, programs, self._ca)
            for number in (1, 2)
        )
        self.one, self.two = one, two
        for agent in (one, two):
            self._stack.callback(agent.close)
        self.pods = [one.node.pod(_NAMESPACE, f"client-{number}") for number in range(self._sizes.own)]
        far = two.node.pod(_NAMESPACE, "server-0")
        two.start()
        two.wait_enrolled(far, seconds=_PATIENCE_S)
        result: dict[str, Any] = {"cold_s": self._started()}
        result["cold_peak_mb"], result["cold_cpu_s"] = self._spent()
        time.sleep(15.0)  # by then it has saved what it knows
        one.stop()
        result["saved_mb"] = sum(path.stat().st_size for path in one.run_dir.rglob("*.jsonl")) / 1e6
        result["warm_s"] = self._started()
        result["warm_peak_mb"], result["warm_cpu_s"] = self._spent()
        return result

    def hold(self) -> int:
        """Opens the connections, each to another destination; how many."""
        wanted = self.plain[: self._sizes.keys]
        for number, pod in enumerate(self.pods):
            self._held += pod.namespace.run(functools.partial(_connected, wanted[number :: len(self.pods)]))
        return len(self._held)

    # ---- measuring it

    def churn(self, seconds: float, *, with_agents: bool) -> dict[str, Any]:
        """Pods come and go; what everybody needs for that. Raises BenchError."""
        pids = self._pids(with_agents=with_agents)
        for group in pids.values():
            for pid in group:
                reset_peak(pid)
        asked = self._questions() if with_agents else 0
        before = _reading(pids)
        memory: dict[str, list[float]] = {name: [] for name in pids}
        assert self._generator is not None
        assert self._generator.stdin is not None
        self._generator.stdin.write(f"churn {seconds}\n")
        probes = _Probes(self, self._sizes.probes) if with_agents else None
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(left, _SAMPLE_S))
            for name, group in pids.items():
                memory[name].append(read_memory(group).pss_mb)
        after = _reading(pids)
        more = self._questions() - asked if with_agents else 0
        ready = probes.finish() if probes is not None else []
        told = self._answer(seconds + _PATIENCE_S)
        return {
            **told,
            "cpu": {name: (after.cpu[name] - before.cpu[name]) / (after.at - before.at) * 100 for name in pids},
            "memory_mb": {name: statistics.median(found[len(found) // 2 :]) for name, found in memory.items()},
            "samples": {"seconds": _SAMPLE_S, "memory_mb": memory},
            "peak_mb": {name: sum(map(read_peak_mb, group)) for name, group in pids.items()},
            "questions": more,
            "ready_ms": ready,
        }

    def stop_agents(self) -> None:
        """They are gone, with what they have put up."""
        for agent in (self.one, self.two):
            agent.stop()

    def _started(self) -> float:
        began = time.monotonic()
        self.one.start()

        def settled() -> bool:
            status = self.one.status()
            if status is None or status.agent is None or status.agent.starting is not None:
                return False
            enrolled = {row.workload for row in status.workloads if row.phase == "enrolled"}
            return enrolled >= {"/".join(pod.key) for pod in self.pods} and status.agent.unready is None

        try:
            wait_for(settled, "the agent has enrolled its pods", _PATIENCE_S)
        except BaseException:
            sys.stderr.write(self.one.log.read_text()[-3000:])
            raise
        return time.monotonic() - began

    def _spent(self) -> tuple[float, float]:
        """(megabytes of resident memory, CPU seconds) that the measured agent took at most, and in all."""
        pid = self._agent_pid()
        return read_peak_mb(pid), read_usage([pid]).total_s

    def _agent_pid(self) -> int:
        status = self.one.status()
        assert status is not None
        assert status.agent is not None
        return status.agent.pid

    def _questions(self) -> int:
        status = self.one.status()
        assert status is not None
        return status.core.decisions.asked if status.core is not None and status.core.decisions is not None else 0

    def _pids(self, *, with_agents: bool) -> dict[str, list[int]]:
        pids = {name: [pid] for name, pid in self._cluster.server.pids.items()}
        if with_agents:
            cores = core_pids(self.one.run_dir)
            pids |= {"agent": [one for one in family(self._agent_pid()) if one not in cores], "core": cores}
        return pids

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._generator is not None
        assert self._generator.stdout is not None
        timer = threading.Timer(seconds, self._generator.kill)
        timer.start()
        line = self._generator.stdout.readline()
        timer.cancel()
        if not line:
            raise BenchError("the generator has ended; what it said stands above")
        found: dict[str, Any] = json.loads(line)
        return found

    def _world(self) -> None:
        """Whoever is at an address of a pod that is not there."""
        net, hub = self._cluster.net, self._cluster.hub
        world = net.create("world")
        net.join(world, "eth0", f"172.29.{_WORLD}.2/30", hub, "world", f"172.29.{_WORLD}.1/30")
        world.ip("route", "add", "default", "via", f"172.29.{_WORLD}.1")
        world.ip("route", "add", "local", RANGE, "dev", "lo")
        hub.ip("route", "add", RANGE, "via", f"172.29.{_WORLD}.2")

        def listen() -> socket.socket:
            return socket.create_server(("", _PORT), backlog=4096)

        listener = world.run(listen)
        self._stack.callback(listener.close)
        threading.Thread(target=_accept, args=(listener, self._accepted), daemon=True).start()

    def _objects(self) -> dict[str, int]:
        paths = {
            "MeshEndpoints": "/apis/nodeseal.io/v1alpha1/meshendpoints",
            "MeshNodes": "/apis/nodeseal.io/v1alpha1/meshnodes",
            "EndpointSlices": "/apis/discovery.k8s.io/v1/endpointslices",
            "Pods": "/api/v1/pods",
        }
        found = {}
        for name, path in paths.items():
            answer = self._cluster.server.ask("GET", f"{path}?limit=1")
            found[name] = len(answer["items"]) + answer["metadata"].get("remainingItemCount", 0)
        return found

    def new_pod(self, number: int) -> PlayedPod:
        """Of node2; it is not ready yet."""
        pod = self.two.node.starting(_NAMESPACE, f"probe-{number}")
        pod.run()
        return pod


class _Probes:
    """New pods on node2, one after the other, each dialled by a pod of node1 until that goes by mutual TLS."""

    def __init__(self, scene: Scene, most: int) -> None:
        self._scene = scene
        self._most = most
        self._found: list[float] = []
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self) -> list[float]:
        """Milliseconds from a pod's being ready to the first connection to it by mutual TLS. Raises BenchError."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise BenchError(f"a new pod could not be dialled: {self._error!r}")
        return self._found

    def _run(self) -> None:
        try:
            for number in range(self._most):
                if self._stop.is_set():
                    return
                self._found.append(self._measure(self._scene.new_pod(number)))
        except BaseException as error:
            self._error = error

    def _measure(self, pod: PlayedPod) -> float:
        source = self._scene.pods[0]
        with contextlib.closing(Server(pod.namespace.run, echo, "::", _PORT)):
            pod.tell()
            ready = time.monotonic()
            while True:
                began = time.monotonic()
                if self._is_tunnelled(source, pod):
                    break
                if began - ready > 60.0:
                    raise BenchError(f"{pod.key} is not reached through mutual TLS after a minute")
                time.sleep(_DIAL_S)
        pod.delete()
        return (began - ready) * 1000

    def _is_tunnelled(self, source: PlayedPod, pod: PlayedPod) -> bool:
        """A connection that is made now is."""
        try:
            with source.namespace.run(lambda: socket.create_connection((pod.address, _PORT), 5)) as connection:
                host, port = connection.getsockname()
                if not echoes(connection):
                    return False
                wanted = ConnectionFilter(live=True, direction="inbound", workload="/".join(pod.key))
                rows = client.ask_connections(self._scene.two.run_dir, wanted).connections
                return any(row.source == f"{host}:{port}" and row.mtls for row in rows)
        except (OSError, client.AgentError):
            return False


@contextlib.contextmanager
def new_scene(directory: Path, sizes: Sizes, say: Say) -> Iterator[Scene]:
    """The API server, and nothing in it yet."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with PlayedCluster(directory) as cluster, contextlib.closing(Scene(cluster, directory, sizes, say)) as scene:
        yield scene


def _connected(addresses: Sequence[str]) -> list[socket.socket]:
    found = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        found.append(socket.create_connection((host, int(port)), 30))
    return found


def _accept(listener: socket.socket, held: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):
        while True:
            held.append(listener.accept()[0])


def _reading(pids: Mapping[str, Sequence[int]]) -> Reading:
    return Reading(time.monotonic(), {name: read_usage(group).total_s for name, group in pids.items()})
