"""The queue of packets in which rules park SYNs: whose it is, and what becomes of it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.backends import iptables as backend
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Journal
from nodeseal.capture.listeners import OUTBOUND, PARKED
from nodeseal.capture.node import NodeCapture
from nodeseal.capture.workload import Captured
from nodeseal.linux import packet_queue
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.packet_queue import Queue
from support.connection import echoes
from support.namespaces import Namespace, iptables_rules
from support.patience import wait_for
from support.pods import Pods

PORT = 8080
FIRST, SECOND = constants.QUEUES[:2]


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, backend=Choice.IPTABLES, version=request.param) as pods:
        yield pods


def queues(namespace: Namespace) -> list[Queue]:
    return namespace.run(lambda: list(packet_queue.queues()))


def parking_rules(namespace: Namespace) -> set[int]:
    """The numbers of the queues that rules name."""
    rules = namespace.run(iptables_rules)
    return {int(rule.split("--queue-num ")[1].split()[0]) for rule in rules if "NFQUEUE" in rule}


def parked(pods: Pods, *, truthful: bool = False) -> tuple[NodeCapture, Captured]:
    """The client, captured and parked, with nobody who reads."""
    capture = NodeCapture(pods.run_dir(), choice=pods.backend, truthful=truthful)
    pods.at_end(pods.cleanup)
    pods.at_end(capture.close)
    capture.prepare()
    captured = capture.enrol(pods.client_target)
    capture.park(captured, on=True)
    return capture, captured


def begin(pods: Pods) -> socket.socket:
    def connect() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in pods.server_at else socket.AF_INET)
        made.setblocking(False)
        assert made.connect_ex((pods.server_at, PORT)) == errno.EINPROGRESS
        return made

    made = pods.client.run(connect)
    pods.at_end(made.close)
    return made


def waiting(queue: int) -> bool:
    """Whether a message waits at the socket."""
    with socket.socket(fileno=os.dup(queue)) as reader:
        try:
            return bool(reader.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False


def test_captured_syn_waits_in_the_queue_and_not_at_the_listener(pods: Pods) -> None:
    _, captured = parked(pods)
    assert queues(pods.client) == [Queue(FIRST, queues(pods.client)[0].port, 0)]
    assert parking_rules(pods.client) == {FIRST}
    connection = begin(pods)
    wait_for(lambda: waiting(captured.listeners[PARKED]), "it is parked")
    with socket.socket(fileno=os.dup(captured.listeners[OUTBOUND])) as listener, pytest.raises(BlockingIOError):
        listener.accept()
    assert connection.connect_ex((pods.server_at, PORT)) == errno.EALREADY


def test_it_is_the_same_with_the_tables_of_legacy(pods: Pods) -> None:
    for program in ("iptables-legacy", "ip6tables-legacy"):
        with pods.client.popen(program, "-t", "mangle", "-A", "INPUT", "-p", "udp", "-j", "ACCEPT") as process:
            assert process.wait(20) == 0
    _, captured = parked(pods)
    programs = Journal.load(pods.run_dir()).entries["default/client"].xtables
    assert all(program.endswith("-legacy") for program in programs)
    assert parking_rules(pods.client) == {FIRST}
    begin(pods)
    wait_for(lambda: waiting(captured.listeners[PARKED]), "it is parked")


def test_what_is_not_parked_is_accepted_at_once(pods: Pods) -> None:
    pods.echo(pods.server)
    capture, captured = parked(pods)
    capture.park(captured, on=False)
    assert parking_rules(pods.client) == set()
    pods.relay(captured)
    assert echoes(pods.dial(pods.client, (pods.server_at, PORT)))
    assert not waiting(captured.listeners[PARKED])


def test_queue_without_a_holder_holds_what_comes(pods: Pods) -> None:
    pods.echo(pods.server)
    _, captured = parked(pods)
    pods.relay(captured)
    os.close(captured.listeners.pop(PARKED))
    assert queues(pods.client) == []
    with pytest.raises(TimeoutError):
        pods.dial(pods.client, (pods.server_at, PORT), timeout=1.5)


def test_next_agent_takes_the_queue_that_the_core_holds(pods: Pods) -> None:
    capture, captured = parked(pods)
    before = queues(pods.client)
    held = {role: os.dup(fd) for role, fd in captured.listeners.items()}
    capture.close()
    later = pods.capture()
    (adopted,) = later.adopt()
    assert later.take_listeners(adopted, held) == []
    assert packet_queue.same_socket(adopted.listeners[PARKED], held[PARKED])
    assert queues(pods.client) == before
    for fd in held.values():
        os.close(fd)


def test_next_agent_makes_another_queue_while_somebody_has_the_last_ones_number(pods: Pods) -> None:
    capture, captured = parked(pods)
    held = os.dup(captured.listeners[PARKED])
    capture.close()
    later = pods.capture()
    (adopted,) = later.adopt()
    later.take_listeners(adopted, {})
    assert {one.number for one in queues(pods.client)} == {FIRST, SECOND}
    assert parking_rules(pods.client) == {SECOND}
    assert Journal.load(pods.run_dir()).entries["default/client"].queue == SECOND
    begin(pods)
    wait_for(lambda: waiting(adopted.listeners[PARKED]), "it is parked")
    assert not waiting(held)
    os.close(held)


def test_queue_that_is_new_takes_the_place_of_one_that_has_ended(pods: Pods) -> None:
    capture, _ = parked(pods)
    capture.close()
    assert queues(pods.client) == []
    later = pods.capture()
    (adopted,) = later.adopt()
    assert adopted.parking
    later.take_listeners(adopted, {})
    assert parking_rules(pods.client) == {FIRST}
    begin(pods)
    wait_for(lambda: waiting(adopted.listeners[PARKED]), "it is parked")


def test_capture_that_an_older_version_made_is_completed(pods: Pods) -> None:
    capture, _ = parked(pods)
    capture.close()
    journal = Journal.load(pods.run_dir())
    entry = journal.entries["default/client"]
    entry.marks.remove(constants.MARK_RELEASED)
    entry.parking, entry.queue = False, 0
    journal.save()
    for version in (4, 6)[: len(entry.versions)]:
        pods.client.ip(f"-{version}", "rule", "delete", "fwmark", hex(constants.MARK_RELEASED))
    later = pods.capture()
    (adopted,) = later.adopt()
    later.take_listeners(adopted, {})
    assert pods.client.rule_exists(constants.MARK_RELEASED)
    assert constants.MARK_RELEASED in Journal.load(pods.run_dir()).entries["default/client"].marks
    assert PARKED in adopted.listeners


def test_what_finds_no_room_is_counted(pods: Pods) -> None:
    capture, _ = parked(pods)
    connections = [begin(pods) for _ in range(packet_queue.MOST + 20)]
    assert capture.errors()["park_full"] >= 20
    assert len(connections) > packet_queue.MOST


@pytest.mark.parametrize("way", ["release", "cleanup"])
def test_removal_leaves_nothing(pods: Pods, way: str) -> None:
    before = pods.client.state()
    capture, _ = parked(pods)
    assert pods.client.rule_exists(constants.MARK_RELEASED)
    if way == "release":
        capture.stop_new(pods.client_target)
        capture.release(pods.client_target)
    else:
        capture.close()
        pods.cleanup()
    assert pods.client.state() == before
    assert queues(pods.client) == []


# ---- a kernel without


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> str:
    """Why there is no queue."""

    def refuse(_numbers: object) -> None:
        raise LinuxError("no queue of packets can be had")

    monkeypatch.setattr(packet_queue, "make", refuse)
    return "no queue of packets can be had"


def test_without_it_connections_are_early_and_it_is_said_why(pods: Pods, without: str) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    assert backend.cannot_park() == capture.early == without
    captured = capture.enrol(pods.client_target)
    assert PARKED not in captured.listeners
    pods.relay(captured)
    assert echoes(pods.dial(pods.client, (pods.server_at, PORT)))


def test_without_it_nobody_who_asks_for_truthful_ones_is_captured(pods: Pods, without: str) -> None:
    with pytest.raises(
        CaptureError, match=f"it cannot have 'connect: truthful', say early if that will do: {without}$"
    ):
        parked(pods, truthful=True)
    assert pods.client.run(iptables_rules) == []


def test_with_it_nothing_is_early(pods: Pods) -> None:
    assert parked(pods, truthful=True)[0].early == ""
