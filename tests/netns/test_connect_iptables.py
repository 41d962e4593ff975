"""Truthful connections with capture by iptables: rules give SYNs to a queue of packets (NFQUEUE), the core answers.

shipper (node1) and pipeline (node2) are enrolled; guest (node1) and intruder (node2) are not.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from nodeseal.capture import constants
from nodeseal.linux import packet_queue
from nodeseal.linux.packet_queue import Queue
from support.connection import echoes, family_of
from support.lab import RunningLab, running_lab
from support.namespaces import iptables_rules
from support.netfilter import rule
from support.patience import PATIENCE, wait_for
from support.programs import BOTH_FAMILIES, Programs

pytestmark = pytest.mark.fast

SETTINGS = {"capture": "iptables", "connect": "truthful"}
SYN_SENT = "02"
FORWARDED = "type filter hook forward priority 0"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab whose cores and agents come and go."""
    pods = ("guest:node1:plain", "comer:node1:plain")
    with running_lab(tmp_path_factory.mktemp("queue"), more_pods=pods, settings=SETTINGS, ipv6=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def everything_is_back(lab: RunningLab) -> Iterator[None]:
    yield
    wait_for(lambda: truthful(lab), "everything is enrolled, and parked")


def truthful(lab: RunningLab) -> bool:
    return lab.enrolled("shipper", "pipeline") and lab.workload("shipper")["connect"] == "truthful"


def queues(lab: RunningLab, pod: str = "shipper") -> list[Queue]:
    return lab.run(pod, lambda: list(packet_queue.queues()))


def closed_port(lab: RunningLab, programs: Programs, pod: str) -> tuple[str, int]:
    """Bound and not listening: nobody else can have this port meanwhile."""

    def reserve() -> socket.socket:
        bound = socket.socket(family_of(programs.at(pod)))
        bound.bind((programs.at(pod), 0))
        return bound

    reserved = lab.run(pod, reserve)
    programs.at_end(reserved.close)
    return reserved.getsockname()[:2]


def begin(lab: RunningLab, programs: Programs, address: tuple[str, int]) -> socket.socket:
    """A connection of shipper that is being made."""

    def connect() -> socket.socket:
        made = socket.socket(family_of(address[0]))
        made.setblocking(False)
        assert made.connect_ex(address) == errno.EINPROGRESS
        return made

    made = lab.run("shipper", connect)
    programs.at_end(made.close)
    return made


def served(connection: socket.socket) -> bool:
    connection.settimeout(PATIENCE)
    return echoes(connection)


@BOTH_FAMILIES
def test_what_listens_is_connected(lab: RunningLab, programs: Programs) -> None:
    for pod in ("pipeline", "intruder"):
        assert all(echoes(programs.dial("shipper", programs.serve(pod).address)) for _ in range(20))
    assert lab.workload("shipper")["connect"] == "truthful"


@BOTH_FAMILIES
@pytest.mark.parametrize("pod", ["pipeline", "intruder"])
def test_closed_port_is_refused(lab: RunningLab, programs: Programs, pod: str) -> None:
    address = closed_port(lab, programs, pod)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            programs.dial("shipper", address)


@BOTH_FAMILIES
def test_what_cannot_be_reached_is_unreachable(lab: RunningLab, programs: Programs) -> None:
    address = programs.serve("intruder").address
    with (
        rule(lab.lab.plan.node("node1").netns, FORWARDED, f"tcp dport {address[1]} reject with icmpx host-unreachable"),
        pytest.raises(OSError) as caught,  # noqa: PT011
    ):
        programs.dial("shipper", address)
    assert caught.value.errno == errno.EHOSTUNREACH


@BOTH_FAMILIES
def test_who_gives_up_over_silence_leaves_nothing(lab: RunningLab, programs: Programs) -> None:
    address = programs.serve("intruder").address
    with rule(lab.lab.plan.node("node1").netns, FORWARDED, f"tcp dport {address[1]} drop"):
        with pytest.raises(TimeoutError):
            programs.dial("shipper", address, timeout=1.5)
        wait_for(lambda: lab.workload("shipper")["connections"] == 0, "the core has given up as well")
    assert echoes(programs.dial("shipper", address))


@BOTH_FAMILIES
def test_it_is_not_connected_before_the_far_side_is(lab: RunningLab, programs: Programs) -> None:
    address = programs.serve("intruder").address
    with rule(lab.lab.plan.node("node1").netns, FORWARDED, f"tcp dport {address[1]} drop"):
        connection = begin(lab, programs, address)
        wait_for(lambda: lab.connections("node1"), "the core dials")
        assert connection.connect_ex(address) == errno.EALREADY
    assert served(connection)


@BOTH_FAMILIES
def test_what_is_dialled_while_no_core_runs_waits(lab: RunningLab, programs: Programs) -> None:
    address = programs.serve("pipeline").address
    refused = closed_port(lab, programs, "pipeline")
    before = queues(lab)
    lab.kill_core("node1")
    connections = [begin(lab, programs, address) for _ in range(30)]
    with pytest.raises(ConnectionRefusedError):
        programs.dial("shipper", refused)
    assert all(served(one) for one in connections)
    assert queues(lab)[0].port == before[0].port


def test_hot_restart_loses_and_refuses_nothing(lab: RunningLab, programs: Programs) -> None:
    address = programs.serve("pipeline").address
    old = lab.core_pid("node1")
    lab.command("upgrade-core", "--run-dir", str(lab.run_dir("node1")))
    connections = [begin(lab, programs, address) for _ in range(30)]
    assert all(served(one) for one in connections)
    wait_for(lambda: lab.core_pid("node1") != old and truthful(lab), "the next core")
    with pytest.raises(ConnectionRefusedError):
        programs.dial("shipper", closed_port(lab, programs, "pipeline"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_next_agent_has_the_same_queue(lab: RunningLab, programs: Programs, number: int) -> None:
    address, refused = programs.serve("pipeline").address, closed_port(lab, programs, "pipeline")
    before = queues(lab)
    lab.restart_agent("node1", number, **SETTINGS)
    wait_for(lambda: truthful(lab), "it is adopted")
    assert [one.port for one in queues(lab)] == [one.port for one in before]
    assert echoes(programs.dial("shipper", address))
    with pytest.raises(ConnectionRefusedError):
        programs.dial("shipper", refused)


def test_agent_and_core_both_gone_hold_what_is_dialled(lab: RunningLab, programs: Programs) -> None:
    address = programs.serve("pipeline").address
    lab.kill_agent("node1")
    os.kill(lab.core_pid("node1"), signal.SIGKILL)
    wait_for(lambda: queues(lab) == [], "the queue has ended with its socket")
    with programs.sniff_pod("shipper") as wire:
        connection = begin(lab, programs, address)
        with pytest.raises(TimeoutError):
            programs.dial("shipper", address, timeout=0.5)
        assert not wire.carries(address[0].encode())
    lab.start_agent("node1", **SETTINGS)
    assert served(connection)
    wait_for(lambda: truthful(lab), "it is parked again")


def test_who_leaves_the_mesh_keeps_no_queue_and_no_rule(lab: RunningLab, programs: Programs) -> None:
    address = programs.serve("pipeline").address
    rules = lab.run("comer", iptables_rules)
    lab.lab.enrol("comer")
    wait_for(lambda: lab.workload("comer")["connect"] == "truthful", "it is parked")
    assert [one.number for one in queues(lab, "comer")] == [constants.QUEUES[0]]
    assert echoes(programs.dial("comer", address))
    lab.lab.unenrol("comer")
    for connection in list(programs._dialled):
        connection.close()
    wait_for(lambda: lab.workload("comer")["phase"] == "absent", "it has left the mesh")
    assert queues(lab, "comer") == []
    assert lab.run("comer", iptables_rules) == rules
