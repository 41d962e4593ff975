"""Processes of a node in the mesh, all of it: two on node1 with identities of their own, beside one that is in no mesh.

node1: vector (port 9100), registry (port 5000), both enrolled; and whatever else runs there
node2: the pods pipeline (enrolled) and intruder (not)
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal_lab.cgroups import directory_of
from nodeseal_lab.mesh_state import SETTLE
from support.connection import echoes
from support.host_process import Dialled, HostProcess
from support.hosts import HOSTS, PORTS, Host
from support.lab import RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Programs

pytestmark = pytest.mark.ebpf_only("processes of a node are captured by eBPF only")

IP_VERSIONS = (4, 6)
CARD = "card=4111 1111 1111 1111;"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(
        tmp_path_factory.mktemp("hosts"), host_workloads=HOSTS, ipv6=True, settings={"settle": SETTLE}
    ) as lab:
        yield lab


def named(lab: RunningLab, pod: str) -> str:
    return lab.identity(pod)


def test_each_process_dials_with_its_own_identity(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = programs.serve("pipeline")
    with programs.sniff("node1") as wire:
        for name in ("vector", "registry"):
            dialled = host.process(name).dial(server.address)
            assert dialled.echoes(CARD)
            seen = lab.connection("node2", "inbound", host.source_of(dialled))
            assert (seen["mtls"], seen["peer"]) == (True, named(lab, name))
            own = lab.connection("node1", "outbound", host.source_of(dialled))
            assert (own["peer"], own["source_workload"]) == (named(lab, "pipeline"), f"default/{name}")
        assert not wire.carries(CARD.encode())


def test_who_is_not_enrolled_is_dialled_natively(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = programs.serve("intruder")
    before = lab.workload("vector")["native"]
    dialled = host.process("vector").dial(server.address)
    assert dialled.mark == 0
    assert dialled.echoes("12345")
    assert server.sources == [(host.address, dialled.port)]
    row = lab.connection("node1", "outbound", host.source_of(dialled))
    assert (row["native"], row["core"], row["mtls"]) == (True, None, False)
    assert (row["workload"], row["reason"]) == ("default/vector", "destination-not-enrolled")
    assert (row["bytes_sent"], row["bytes_received"]) == (5, 5)
    assert lab.workload("vector")["native"]["open"] == before["open"] + 1
    dialled.close()
    wait_for(lambda: lab.workload("vector")["native"]["closed"] == before["closed"] + 1, "it is counted")
    with pytest.raises(ConnectionRefusedError):
        host.process("vector").dial((server.address[0], 9999))


def test_native_connections_of_a_process_outlive_agent_and_core(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    dialled = host.process("registry").dial(programs.serve("intruder").address)
    assert dialled.echoes(CARD)
    lab.kill_agent("node1")
    lab.kill_core("node1")
    assert dialled.echoes(CARD)
    lab.start_agents()
    wait_for(lambda: lab.enrolled("vector", "registry"), "both are enrolled again")
    assert dialled.echoes(CARD)
    row = lab.connection("node1", "outbound", host.source_of(dialled))
    assert (row["native"], row["workload"]) == (True, "default/registry")


def test_a_process_of_no_workload_stays_in_plaintext(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = programs.serve("pipeline")
    with programs.sniff("node1") as wire:
        dialled = host.process().dial(server.address)
        assert dialled.echoes(CARD)
        assert wire.carries(CARD.encode())
    seen = lab.connection("node2", "inbound", host.source_of(dialled))
    assert (seen["mtls"], seen["reason"]) == (False, "source-shares-address")


def test_strict_takes_the_processes_that_are_enrolled_and_no_other(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    server = programs.serve("pipeline")
    lab.lab.set_mode("pipeline", "strict")
    try:
        assert host.process("vector").dial(server.address).echoes(CARD)
        with pytest.raises(ConnectionError):
            host.process().dial(server.address).echoes(CARD)
    finally:
        lab.lab.set_mode("pipeline", "permissive")


def test_each_port_leads_to_its_process_and_identity(lab: RunningLab, programs: Programs, host: Host) -> None:
    servers = {name: host.server(name) for name in PORTS}
    with programs.sniff("node1") as wire:
        for name, port in PORTS.items():
            client = programs.dial("pipeline", (host.address, port))
            assert echoes(client, CARD.encode())
            assert lab.outbound(client)["peer"] == named(lab, name)
            assert [address for address, _ in servers[name].peers()] == [programs.at("pipeline")]
        assert not wire.carries(CARD.encode())


def test_a_client_that_is_not_enrolled_reaches_a_process_in_plaintext(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    server = host.server("vector")
    client = programs.dial("intruder", (host.address, PORTS["vector"]))
    assert echoes(client, CARD.encode())
    assert [address for address, _ in server.peers()] == [programs.at("intruder")]
    lab.lab.set_mode("vector", "strict")
    try:
        with pytest.raises(ConnectionError):
            echoes(programs.dial("intruder", (host.address, PORTS["vector"])), CARD.encode())
        assert echoes(programs.dial("pipeline", (host.address, PORTS["vector"])), CARD.encode())
    finally:
        lab.lab.set_mode("vector", "permissive")


def test_other_ports_of_the_node_are_left_alone(lab: RunningLab, programs: Programs, host: Host) -> None:
    other = host.process()
    other.listen(2222)
    client = programs.dial("pipeline", (host.address, 2222))
    assert echoes(client, CARD.encode())
    row = lab.outbound(client)
    assert (row["mtls"], row["reason"]) == (False, "destination-not-in-mesh")


def test_a_pod_of_the_same_node_reaches_a_process_and_is_reached(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    host.server("vector")
    client = programs.dial("shipper", (host.address, PORTS["vector"]))
    assert echoes(client, CARD.encode())
    assert lab.outbound(client)["peer"] == named(lab, "vector")
    server = programs.serve("siem")
    dialled = host.process("registry").dial(server.address)
    assert dialled.echoes(CARD)
    outbound = lab.connection("node1", "outbound", host.source_of(dialled))
    assert outbound["peer"] == named(lab, "siem")


def test_unenrolling_one_leaves_its_connections_and_the_other_alone(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    server = programs.serve("pipeline")
    host.server("vector")
    vector, registry = host.process("vector"), host.process("registry")
    outbound = {"vector": vector.dial(server.address), "registry": registry.dial(server.address)}
    inbound = programs.dial("pipeline", (host.address, PORTS["vector"]))
    lab.lab.unenrol("vector")
    try:
        assert all(connection.echoes(CARD) for connection in outbound.values())
        assert echoes(inbound, CARD.encode())
        direct = vector.dial(server.address)
        assert direct.echoes(CARD)
        assert lab.connection("node2", "inbound", host.source_of(direct))["mtls"] is False
        assert echoes(programs.dial("pipeline", (host.address, PORTS["vector"])), CARD.encode())
        again = registry.dial(server.address)
        assert again.echoes(CARD)
        assert lab.connection("node2", "inbound", host.source_of(again))["peer"] == named(lab, "registry")
        for connection in (*outbound.values(), again):
            connection.close()
        inbound.close()
        wait_for(lambda: lab.workload("vector")["phase"] == "absent", "vector has left the mesh")
        assert registry.dial(server.address).echoes(CARD)
    finally:
        lab.lab.enrol("vector")


def test_connections_older_than_enrolment_are_shown_with_their_own_workload(
    lab: RunningLab, programs: Programs, host: Host
) -> None:
    server = programs.serve("pipeline")
    lab.lab.unenrol("vector")
    wait_for(lambda: lab.workload("vector")["phase"] == "absent", "vector has left the mesh")
    old, other = host.process("vector").dial(server.address), host.process().dial(server.address)
    lab.lab.enrol("vector")
    assert old.echoes(CARD)
    assert other.echoes(CARD)
    row = lab.connection("node1", "outbound", host.source_of(old))
    assert (row["workload"], row["reason"]) == ("default/vector", "opened-before-enrolment")
    sources = [row["source"] for row in lab.connections("node1")]
    assert host.source_of(other) not in sources


@pytest.mark.parametrize("what", ["agent", "upgrade", "core"])
def test_a_new_agent_or_core_takes_both_over(lab: RunningLab, programs: Programs, host: Host, what: str) -> None:
    server = programs.serve("pipeline")
    for name in PORTS:
        host.server(name)
    processes = {name: host.process(name) for name in PORTS}
    running = {name: process.dial(server.address) for name, process in processes.items()}
    if what == "agent":
        lab.restart_agent("node1", signal.SIGKILL)
        assert all(connection.echoes(CARD) for connection in running.values())
    elif what == "upgrade":
        done = lab.command("upgrade-core", "--run-dir", str(lab.run_dir("node1")))
        assert done.returncode == 0, done.stderr
        assert all(connection.echoes(CARD) for connection in running.values())
    else:
        before = lab.core_pid("node1")
        lab.kill_core("node1")
        wait_for(lambda: lab.core_pids("node1") not in ([], [before]), "another core runs")
    for name, process in processes.items():
        dialled = process.dial(server.address, timeout=PATIENCE)
        assert dialled.echoes(CARD)
        assert lab.connection("node2", "inbound", host.source_of(dialled))["peer"] == named(lab, name)
        client = programs.dial("pipeline", (host.address, PORTS[name]))
        assert echoes(client, CARD.encode())
        assert lab.outbound(client)["peer"] == named(lab, name)


def test_a_service_that_is_started_again_is_captured_again(lab: RunningLab, programs: Programs, host: Host) -> None:
    server = programs.serve("pipeline")
    path = directory_of(lab.lab.plan.pod("vector").cgroup)
    path.rmdir()
    path.mkdir()
    process = host.process("vector")

    def captured() -> Dialled | None:
        dialled = process.dial(server.address)
        return dialled if dialled.mark else None

    dialled = wait_for(captured, "vector is captured again")
    assert dialled.echoes(CARD)
    assert lab.connection("node2", "inbound", host.source_of(dialled))["peer"] == named(lab, "vector")


def test_cleanup_and_down_leave_nothing(lab_root: Path) -> None:
    with running_lab(lab_root, host_workloads=HOSTS) as lab:
        plan = lab.lab.plan
        cgroup = Path("/sys/fs/cgroup")
        process = HostProcess(plan.node("node1").netns, plan.pod("vector").cgroup)
        with contextlib.closing(process):
            names = {path.name for path in cgroup.rglob("nodeseal-lab-*") if plan.name in path.name}
            assert names == {f"nodeseal-lab-{plan.name}"}
            run_dir = lab.run_dir("node1")
            done = lab.command("cleanup", "--run-dir", str(run_dir))
            assert done.returncode == 0, done.stderr
            assert "BPF programs at the cgroup of default/vector" in done.stdout
            rules = ["ip", "-n", plan.node("node1").netns, "rule", "show"]
            assert "0x4e54" not in subprocess.run(rules, capture_output=True, text=True, check=True, timeout=20).stdout
            again = lab.command("cleanup", "--run-dir", str(run_dir))
            assert again.returncode == 0
    assert not [path for path in cgroup.rglob("nodeseal-lab-*") if plan.name in path.name]
