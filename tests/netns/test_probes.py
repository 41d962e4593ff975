"""What the node itself dials, as the kubelet's probes: plaintext to every workload, whatever of ours is alive, and
nobody else's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import PIPELINE_HTTP_PORT
from support.connection import echoes, endpoint
from support.lab import RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Programs

pytestmark = [
    pytest.mark.ebpf_only("iptables cannot tell the node from what it forwards, see test_probes_iptables"),
]

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """pipeline is strict, and vector is an enrolled process of its node. Nobody starts agents again but the tests."""
    hosts = ("vector:node2:9100",)
    with running_lab(tmp_path_factory.mktemp("probes"), host_workloads=hosts, with_apps=True, ipv6=True) as lab:
        lab.lab.set_mode("pipeline", "strict")
        yield lab


@pytest.fixture
def lab(probed: RunningLab) -> Iterator[RunningLab]:
    yield probed
    probed.start_agents()
    wait_for(lambda: probed.enrolled("pipeline"), "pipeline is enrolled")


def probe(lab: RunningLab, netns: str, *options: str, version: int = 4) -> bool:
    """Whether an HTTP probe of pipeline from a network namespace is answered, made as a user would."""
    url = f"http://{endpoint((lab.address('pipeline', version), PIPELINE_HTTP_PORT))}/"
    command = ["ip", "netns", "exec", netns, "curl", "-sf", "-o", "/dev/null", "--max-time", "30", *options, url]
    return subprocess.run(command, check=False, timeout=PATIENCE).returncode == 0


def node(lab: RunningLab, name: str) -> str:
    return lab.lab.plan.node(name).netns


def pod(lab: RunningLab, name: str) -> str:
    return lab.lab.plan.pod(name).netns


@VERSIONS
def test_probe_of_a_strict_workload_from_its_node_is_answered(lab: RunningLab, version: int) -> None:
    before = lab.status("node2")["past_core"]["from-node"]
    assert probe(lab, node(lab, "node2"), version=version)
    assert lab.status("node2")["past_core"]["from-node"] == before + 1


@VERSIONS
def test_strict_still_refuses_others(lab: RunningLab, version: int) -> None:
    assert not probe(lab, pod(lab, "intruder"), version=version), "another pod of the node"
    assert not probe(lab, node(lab, "node1"), version=version), "another node"
    assert probe(lab, pod(lab, "shipper"), version=version), "an enrolled workload, through a tunnel"


@VERSIONS
def test_probe_from_an_address_that_enrolled_processes_share_is_answered(lab: RunningLab, version: int) -> None:
    assert lab.enrolled("vector")
    shared = lab.address("vector", version)
    assert probe(lab, node(lab, "node2"), "--interface", shared, version=version)


def test_probe_is_answered_without_agent(lab: RunningLab) -> None:
    lab.kill_agent("node2")
    assert probe(lab, node(lab, "node2"))
    assert not probe(lab, pod(lab, "intruder"))


def test_probe_is_answered_without_agent_and_core(lab: RunningLab) -> None:
    """Whoever probes ends what does not answer: that nobody of ours lives must not end a workload."""
    lab.kill_agent("node2")
    lab.kill_core("node2")
    assert probe(lab, node(lab, "node2"))
    assert probe(lab, node(lab, "node2"), version=6)
    assert not probe(lab, pod(lab, "intruder"), "--max-time", "1")


def test_probe_is_answered_while_the_core_hangs(lab: RunningLab) -> None:
    """Its listeners are there and take the connection, and nobody ever answers: for others that is so."""
    pid = lab.core_pid("node2")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert probe(lab, node(lab, "node2"))
    finally:
        os.kill(pid, signal.SIGCONT)


def test_connection_from_the_node_is_shown_with_its_reason(lab: RunningLab) -> None:
    with Programs(lab) as programs:
        server = programs.serve("pipeline")
        address = server.address
        client = run_in(node(lab, "node2"), lambda: socket.create_connection(address, PATIENCE))
        programs.at_end(client.close)
        assert echoes(client)
        rows = [row for row in lab.connections("node2") if row["source"] == endpoint(client.getsockname())]
        assert [(row["mtls"], row["reason"], row["core"]) for row in rows] == [(False, "from-node", None)]
        shown = lab.command("connections", "--run-dir", str(lab.run_dir("node2"))).stdout
        assert "no: from-node" in shown


def test_new_address_of_the_node_counts_without_a_restart(lab: RunningLab) -> None:
    netns, address = node(lab, "node2"), "10.77.2.251"
    subprocess.run(["ip", "-n", netns, "address", "add", f"{address}/24", "dev", "nsbr0"], check=True)
    try:
        wait_for(lambda: address in lab.status("node2")["node_addresses"], "the agent knows the address")
        wait_for(lambda: probe(lab, netns, "--interface", address), "the address is in force")
    finally:
        subprocess.run(["ip", "-n", netns, "address", "del", f"{address}/24", "dev", "nsbr0"], check=True)
    wait_for(lambda: address not in lab.status("node2")["node_addresses"], "the agent knows that it is gone")


def test_exemption_can_be_switched_off_and_extended(lab: RunningLab) -> None:
    try:
        lab.restart_agent("node2", node_addresses=[])
        wait_for(lambda: not probe(lab, node(lab, "node2")), "the node is a client like any other")
        lab.restart_agent("node2", node_addresses=["10.77.0.0/24", "fd77::/112"])
        wait_for(lambda: probe(lab, node(lab, "node1")), "node1 has an address that the operator named")
        assert probe(lab, node(lab, "node1"), version=6)
        assert not probe(lab, pod(lab, "intruder"))
    finally:
        lab.restart_agent("node2", node_addresses=["local"])
    wait_for(lambda: probe(lab, node(lab, "node2")), "the node is exempt again")
    wait_for(lambda: not probe(lab, node(lab, "node1")), "and only the node")
