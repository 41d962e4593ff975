"""connect() that tells the truth, through restarts and changes, in a lab: who is refused, who waits, who is served."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from nodeseal.capture.backends.backend import Choice
from nodeseal_lab.mesh_state import change_workloads
from support.connection import echoes
from support.hosts import HOSTS, Host
from support.lab import RunningLab, running_lab
from support.netfilter import rule
from support.options import BACKEND
from support.patience import PATIENCE, wait_for
from support.programs import BOTH_FAMILIES, Programs

pytestmark = pytest.mark.both_backends

CLOSED = 9


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    hosts = HOSTS if BACKEND.asked() is Choice.EBPF else ()
    with running_lab(tmp_path_factory.mktemp("truthful"), host_workloads=hosts, ipv6=True) as lab:
        wait_for(lambda: connect(lab, "shipper") == "truthful", "what it dials is parked")
        yield lab


def connect(lab: RunningLab, pod: str) -> str | None:
    return lab.workload(pod)["connect"]  # type: ignore[no-any-return]


def is_established(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


@BOTH_FAMILIES
def test_a_closed_port_is_refused(lab: RunningLab, programs: Programs) -> None:
    assert echoes(programs.dial("shipper", programs.serve("pipeline").address))
    for pod in ("pipeline", "intruder"):
        with pytest.raises(ConnectionRefusedError):
            programs.dial("shipper", (programs.at(pod), CLOSED))


@pytest.mark.ebpf_only("processes of the node are captured by eBPF only")
def test_a_closed_port_is_refused_to_a_process_of_the_node(lab: RunningLab, programs: Programs, host: Host) -> None:
    wait_for(lambda: connect(lab, "vector") == "truthful", "what it dials is parked")
    process = host.process("vector")
    assert process.dial(programs.serve("pipeline").address).echoes()
    with pytest.raises(ConnectionRefusedError):
        process.dial((programs.at("pipeline"), CLOSED))


@BOTH_FAMILIES
def test_it_stays_while_the_agent_is_away_and_with_the_next(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.kill_agent("node1")
    assert echoes(programs.dial("shipper", server.address))
    with pytest.raises(ConnectionRefusedError):
        programs.dial("shipper", (programs.at("pipeline"), CLOSED))
    lab.start_agent("node1")
    wait_for(lambda: lab.enrolled("shipper"), "it is adopted")
    assert connect(lab, "shipper") == "truthful"
    assert echoes(programs.dial("shipper", server.address))
    with pytest.raises(ConnectionRefusedError):
        programs.dial("shipper", (programs.at("pipeline"), CLOSED))


@BOTH_FAMILIES
def test_what_is_dialled_while_nobody_runs_waits_and_is_served(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.kill_agent("node1")
    lab.kill_core("node1")
    waiting = programs.begin("shipper", server.address)
    assert not is_established(waiting)
    lab.start_agent("node1")
    wait_for(lambda: is_established(waiting), "it is served")
    waiting.settimeout(PATIENCE)
    assert echoes(waiting)
    wait_for(lambda: lab.enrolled("shipper", "siem"), "everything is enrolled")


@BOTH_FAMILIES
def test_what_waits_for_a_silent_peer_is_made_by_the_next_core(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("intruder")
    namespace = lab.lab.plan.pod("intruder").netns
    silence = f"tcp dport {server.address[1]} drop"
    with rule(namespace, "type filter hook input priority 0", silence):
        waiting = programs.begin("shipper", server.address)
        before = lab.core_pid("node1")
        done = lab.command("upgrade-core", "--run-dir", str(lab.run_dir("node1")))
        assert done.returncode == 0, done.stderr
        assert lab.core_pid("node1") != before
        assert not is_established(waiting)
    wait_for(lambda: is_established(waiting), "it is made")
    waiting.settimeout(PATIENCE)
    assert echoes(waiting)


def test_early_can_be_had_and_taken_back_while_it_runs(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    running = programs.dial("shipper", server.address)
    change_workloads(lab.lab.mesh, {"shipper": {"connect": "early"}})
    wait_for(lambda: connect(lab, "shipper") == "early", "it is early")
    assert echoes(running)
    with pytest.raises(ConnectionResetError):  # the reset may come before connect() has returned
        programs.dial("shipper", (programs.at("pipeline"), CLOSED)).recv(1)
    assert echoes(programs.dial("shipper", server.address))
    change_workloads(lab.lab.mesh, {"shipper": {"connect": "truthful"}})
    wait_for(lambda: connect(lab, "shipper") == "truthful", "it is truthful")
    assert echoes(running)
    with pytest.raises(ConnectionRefusedError):
        programs.dial("shipper", (programs.at("pipeline"), CLOSED))
