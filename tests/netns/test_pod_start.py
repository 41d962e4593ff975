"""Pods whose network real CNI plugins make: they start once they are enrolled, and their first bytes are encrypted.

The runtime is a part of the test; plugins, agents, cores and packets are real.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeseal.cni.installation import PROGRAM
from nodeseal_lab.namespaces import run_in
from support.cni_runtime import PLUGINS, ContainerRuntime, PluginError, Sandbox
from support.connection import echoes, receive_exactly
from support.lab import RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Programs
from support.sniffer import carries

pytestmark = pytest.mark.skipif(
    not PLUGINS.is_dir(), reason="needs network plugins: apt-get install containernetworking-plugins"
)

GATEWAY = "10.77.1.1"
SETTLE = "5s"
"""Longer than a change takes from node to node, on a machine on which 100 pods start."""
OUTWARD, INWARD = b"the first words of a pod", b"the first words to a pod"
BACK_PORT = 7001


class Node1:
    """Node1 of a lab with a runtime and an agent that has installed the plugin."""

    def __init__(self, lab: RunningLab, directory: Path) -> None:
        self.lab = lab
        plan = lab.lab.plan
        self.runtime = ContainerRuntime(plan.node("node1").netns, directory, f"{plan.name}-cni-", GATEWAY)
        self.settings = {
            "config_directory": str(self.runtime.lists),
            "binary_directory": str(self.runtime.programs),
            "open_namespaces": [],
            "wait": "settled",
        }
        lab.restart_agent("node1", cni=self.settings)
        wait_for(lambda: "nodeseal-cni" in self.list, "the plugin is installed")
        self._wanted: dict[str, Sandbox] = {}

    @property
    def list(self) -> str:
        return (self.runtime.lists / "10-pods.conflist").read_text()

    def pods(self, prefix: str, first: int, count: int, *, wanted: bool = True) -> list[Sandbox]:
        """Namespaces of pods that the mesh state wants to be enrolled, or does not know."""
        made = [self.runtime.sandbox(f"{prefix}{number}", f"10.77.1.{first + number}") for number in range(count)]
        if wanted:
            self._wanted |= {one.name: one for one in made}
            self._write()
        return made

    def forget(self, pods: Sequence[Sandbox]) -> None:
        """The mesh state does not have them any more."""
        for pod in pods:
            self._wanted.pop(pod.name, None)
            self.runtime.remove(pod)
        self._write()

    def _write(self) -> None:
        workloads = [
            {
                "name": one.name,
                "namespace": "default",
                "service_account": "web",
                "node": "node1",
                "address": one.address,
                "netns": str(one.path),
                "enrolled": True,
                "mode": "permissive",
            }
            for one in self._wanted.values()
        ]
        draft = self.lab.lab.mesh / "pods.new"
        draft.write_text(yaml.safe_dump({"workloads": workloads}))
        draft.rename(self.lab.lab.mesh / "pods.yaml")

    def published(self) -> set[str]:
        """The names of pods in this node's publication."""
        entries = yaml.safe_load((self.lab.lab.mesh / "enrolled" / "node1.yaml").read_text())["enrolled"]
        names = (one if isinstance(one, str) else f"{one['namespace']}/{one['name']}" for one in entries)
        return {name.removeprefix("default/") for name in names}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("labs") / "r", settings={"settle": SETTLE}) as lab:
        yield lab


@pytest.fixture(scope="module")
def node(lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node1]:
    made = Node1(lab, tmp_path_factory.mktemp("cni"))
    try:
        yield made
    finally:
        made.runtime.close()


@pytest.fixture
def programs(lab: RunningLab) -> Iterator[Programs]:
    with Programs(lab) as programs:
        yield programs


class Caller:
    """A server in the pod `pipeline` that dials back whoever dials it, before it answers."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self.server = programs.serve("pipeline", self._handle)

    def _handle(self, connection: socket.socket) -> None:
        words = receive_exactly(connection, len(OUTWARD))
        back = self._programs.dial("pipeline", (connection.getpeername()[0].removeprefix("::ffff:"), BACK_PORT))
        if echoes(back, INWARD):
            connection.sendall(words)


def first_words(pod: Sandbox, destination: tuple[str, int]) -> list[socket.socket]:
    """What the pod's first program does: it listens, dials, and is dialled back before it has its answer."""

    def sockets() -> tuple[socket.socket, socket.socket]:
        return socket.create_server((pod.address, BACK_PORT)), socket.create_connection(destination, PATIENCE)

    listener, outward = run_in(pod.netns, sockets)
    listener.settimeout(PATIENCE)
    with listener:
        outward.sendall(OUTWARD)
        inward, _peer = listener.accept()
        inward.sendall(receive_exactly(inward, len(INWARD)))
        assert receive_exactly(outward, len(OUTWARD)) == OUTWARD
    return [outward, inward]


def rows_of(lab: RunningLab, pods: Sequence[Sandbox]) -> list[dict[str, Any]]:
    names = {f"default/{pod.name}" for pod in pods}
    return [row for row in lab.connections("node1") if row["workload"] in names and row["state"] == "open"]


def test_first_connections_of_100_pods_at_once_are_encrypted_both_ways(node: Node1, programs: Programs) -> None:
    pods = node.pods("web-", 100, 100)
    caller = Caller(programs)

    def start(pod: Sandbox) -> list[socket.socket]:
        result = node.runtime.add(pod)
        assert result["ips"][0]["address"] == f"{pod.address}/24"
        return first_words(pod, caller.server.address)

    with programs.sniff("node1") as wire, ThreadPoolExecutor(len(pods)) as pool:
        connections = [one for both in pool.map(start, pods) for one in both]
        packets = wire.cut()
    assert not carries(packets, OUTWARD)
    assert not carries(packets, INWARD)
    rows = rows_of(node.lab, pods)
    assert [row["mtls"] for row in rows] == [True] * 200
    assert sorted(row["direction"] for row in rows) == ["inbound"] * 100 + ["outbound"] * 100
    assert {pod.name for pod in pods} <= node.published()
    for one in connections:
        one.close()
    with ThreadPoolExecutor(len(pods)) as pool:
        list(pool.map(node.runtime.delete, pods))
    # The namespaces are still there.
    assert not {pod.name for pod in pods} & node.published()
    node.forget(pods)


def test_without_the_plugin_first_words_are_read_on_the_wire(node: Node1, programs: Programs) -> None:
    """What the others prove: the very same pod, enrolled a moment after its start."""
    (pod,) = node.pods("late-", 90, 1, wanted=False)
    node.runtime.add(pod)
    caller = Caller(programs)
    with programs.sniff("node1") as wire:
        for one in first_words(pod, caller.server.address):
            one.close()
        packets = wire.cut()
    assert carries(packets, OUTWARD)
    assert carries(packets, INWARD)
    node.runtime.delete(pod)
    node.forget([pod])


def test_a_start_waits_while_the_agent_is_exchanged(node: Node1, lab: RunningLab) -> None:
    (pod,) = node.pods("upgrade-", 80, 1)
    lab.kill_agent("node1", signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(node.runtime.add, pod)
        wait_for(lambda: run_in(pod.netns, socket.if_nameindex)[1:], "the pod has a device")
        assert not adding.done()
        lab.start_agent("node1")
        adding.result(PATIENCE)
    assert pod.name in node.published()
    node.runtime.delete(pod)
    node.forget([pod])


def test_what_goes_needs_no_agent_and_what_comes_is_refused_in_time(node: Node1, lab: RunningLab) -> None:
    first, second = node.pods("alone-", 70, 2)
    node.runtime.add(first)
    lab.kill_agent("node1", signal.SIGTERM)
    node.runtime.delete(first)
    node.runtime.remove(first)
    node.runtime.delete(first)
    entry = next(one for one in json.loads(node.list)["plugins"] if one["type"] == "nodeseal-cni")
    (node.runtime.lists / "00-impatient.conflist").write_text(
        node.list.replace('"type": "nodeseal-cni"', '"type": "nodeseal-cni", "timeout_seconds": 1')
    )
    with pytest.raises(PluginError) as refused:
        node.runtime.add(second)
    assert entry["on_failure"] == "closed"
    assert refused.value.printed["code"] == 11
    node.runtime.delete(second)
    (node.runtime.lists / "00-impatient.conflist").unlink()
    lab.start_agent("node1")
    node.runtime.add(second)
    wait_for(lambda: node.published() & {first.name, second.name} == {second.name}, "the first one is gone")
    node.runtime.delete(second)
    node.forget([first, second])


def test_cleanup_takes_the_plugin_out(lab_root: Path, tmp_path: Path) -> None:
    with running_lab(lab_root) as lab:
        node = Node1(lab, tmp_path / "cni")
        try:
            lab.kill_agent("node1", signal.SIGKILL)
            done = lab.command("cleanup", "--run-dir", str(lab.run_dir("node1")))
            assert f"removed nodeseal-cni from {node.runtime.lists}/10-pods.conflist" in done.stdout
            assert "nodeseal-cni" not in node.list
            assert not list(node.runtime.programs.iterdir())
            (pod,) = node.pods("after-", 60, 1, wanted=False)
            node.runtime.add(pod)
            node.runtime.delete(pod)
        finally:
            node.runtime.close()


def test_program_of_this_checkout_runs_without_a_dynamic_linker() -> None:

    assert PROGRAM.is_file(), "build it: python setup.py build_ext --inplace"
    readelf = shutil.which("readelf")
    assert readelf is not None

    headers = subprocess.run([readelf, "-lW", PROGRAM], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "INTERP" not in headers
