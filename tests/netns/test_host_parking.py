"""What a process of the node dials waits until it is known whether anybody answers: as tests/netns/test_parking.py has
it for a namespace, with a reader in the place of the core.

The server of the two pods stands for the node: its namespace is shared by two workloads and a third process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nodeseal.capture import constants
from nodeseal.capture.listeners import PARKED
from nodeseal.capture.node import NodeCapture
from nodeseal.capture.workload import Captured, CaptureTarget
from nodeseal.mesh.exclusions import PortRange
from nodeseal.mesh.host import HostPlace
from support.host_process import Cgroup, HostProcess
from support.netfilter import rule, tracked
from support.parking import GONE, SYN, Answers, Ring, Sender, refusal
from support.patience import wait_for
from support.pods import Pods
from support.relay import Relay

pytestmark = pytest.mark.ebpf_only("processes of the node are captured by eBPF only")

PORT = 8080


class Process(NamedTuple):
    """A workload that is a process of the node, captured and parked."""

    target: CaptureTarget
    captured: Captured
    relay: Relay
    dials: HostProcess

    @property
    def ring(self) -> int:
        return self.captured.listeners[PARKED]


class Node:
    """A capture for the processes of a node, and an echo server elsewhere."""

    def __init__(self, pods: Pods, cgroups: Cgroup, stack: contextlib.ExitStack) -> None:
        self.pods, self._cgroups, self._stack = pods, cgroups, stack
        self.before = pods.server.state()
        self.echo = pods.echo(pods.client)
        self.capture: NodeCapture = pods.capture()
        self.far = (pods.client_at, PORT)

    def process(self, name: str, *, parked: bool = True) -> Process:
        place = HostPlace(self._cgroups.make(name), (PortRange(9000 + len(name), 9000 + len(name)),))
        target = CaptureTarget(f"default/{name}", self.pods.server.name, self.pods.server_target.addresses, host=place)
        captured = self.capture.enrol(target)
        relay = self.pods.relay(captured)
        if parked:
            self.capture.park(captured, on=True)
        dials = self._stack.enter_context(HostProcess(self.pods.server.name, place.cgroup))
        return Process(target, captured, relay, dials)

    def answers(self, process: Process, verdict: bool | None = True) -> Answers:
        answers = Answers(self.pods.server, process.ring, lambda _syn: verdict)
        self.pods.at_end(answers.close)
        return answers


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    with Cgroup() as cgroups, Pods(tmp_path, version=request.param) as pods, contextlib.ExitStack() as stack:
        yield Node(pods, cgroups, stack)


def test_what_is_released_is_connected_each_by_its_own_core(node: Node) -> None:
    for one in (node.process("vector"), node.process("registry")):
        answers = node.answers(one)
        dialled = one.dials.dial(node.far)
        assert dialled.echoes()
        (syn,) = answers.of(SYN)
        assert (syn.source, syn.destination) == ((node.pods.server_at, dialled.port), node.far)
        assert syn.mark & constants.MARK_HOST_MASK == constants.MARK_HOST_RELEASED
        assert [flow.source for flow in one.relay.flows] == [syn.source]


def test_what_is_refused_is_refused(node: Node) -> None:
    one = node.process("vector")
    node.answers(one, verdict=False)
    with pytest.raises(ConnectionRefusedError):
        one.dials.dial(node.far)
    assert one.relay.flows == []


def test_one_that_gives_up_has_gone(node: Node) -> None:
    one = node.process("vector")
    answers = node.answers(one, verdict=None)
    with pytest.raises(TimeoutError):
        one.dials.dial(node.far, timeout=0.5)
    wait_for(lambda: list(answers.of(GONE)), "it has gone")
    (gone,) = answers.of(GONE)
    (syn, *_) = answers.of(SYN)
    assert (gone.source, gone.destination) == (syn.source, syn.destination)


def test_a_neighbour_that_is_not_parked_is_accepted_at_once(node: Node) -> None:
    one, early = node.process("vector"), node.process("registry", parked=False)
    assert early.dials.dial(node.far).echoes()
    with Ring(one.ring) as ring:
        assert ring.read() == []
    with Ring(early.ring) as ring:
        assert ring.read() == []
    node.capture.park(one.captured, on=False)
    assert one.dials.dial(node.far).echoes()


def test_the_nodes_nat_does_not_touch_what_is_released(node: Node) -> None:
    one = node.process("vector")
    node.answers(one)
    family = "ip6" if node.pods.version == 6 else "ip"
    far, gateway = node.pods.client_at, node.pods.client_gateway
    released = f"meta mark and {constants.MARK_HOST_MASK:#x} == {constants.MARK_HOST_RELEASED:#x}"
    elsewhere = f"{family} daddr {far} {released} dnat {family} to {gateway}"
    with rule(node.pods.server.name, "type nat hook output priority -100", elsewhere):
        dialled = one.dials.dial(node.far)
        assert dialled.echoes()
        assert not [ends for ends in tracked(node.pods.server.name) if ends[0] == (node.pods.server_at, dialled.port)]


def test_a_reset_that_lies_is_held(node: Node) -> None:
    one = node.process("vector")
    answers = node.answers(one)
    dialled = one.dials.dial(node.far)
    assert dialled.echoes()
    (syn,) = answers.of(SYN)
    sender = Sender(node.pods.server)
    sender.send(refusal(syn.packet), 0)  # the kernel gives its resets no mark in a node's namespace
    sender.close()
    wait_for(lambda: node.capture.errors()["park_reset_held"] == 1, "it is held")
    assert dialled.echoes()


def test_resets_of_others_pass(node: Node) -> None:
    node.process("vector")
    other = HostProcess(node.pods.server.name)
    with other, pytest.raises(ConnectionRefusedError):
        other.dial((node.pods.server_at, 9))
    assert node.capture.errors()["park_reset_held"] == 0


def test_nobody_takes_the_mark_of_a_released_syn(node: Node) -> None:
    node.process("vector")
    with HostProcess(node.pods.server.name) as other, pytest.raises(PermissionError):
        other.dial(node.far, mark=constants.host_released_mark(1))


def test_removal_leaves_nothing(node: Node) -> None:
    one, two = node.process("vector"), node.process("registry")
    for each in (one, two):
        node.answers(each)
        assert each.dials.dial(node.far).echoes()
    node.capture.stop_new(one.target)
    node.capture.release(one.target)
    assert two.dials.dial(node.far).echoes()
    assert len(two.relay.flows) == 2
    assert one.dials.dial(node.far).echoes()
    node.capture.close()
    node.pods.cleanup()
    assert node.pods.server.state() == node.before
    assert list(node.pods.run_dir().iterdir()) == []


def test_the_next_agent_has_the_same_rings(node: Node) -> None:
    one = node.process("vector")
    later = NodeCapture(node.pods.run_dir(), choice=node.pods.backend)
    later.prepare()
    node.pods.at_end(later.close)
    (adopted,) = later.adopt()
    assert adopted.parking
    assert later.take_listeners(adopted, one.captured.listeners) == []
    answers = Answers(node.pods.server, adopted.listeners[PARKED])
    node.pods.at_end(answers.close)
    assert one.dials.dial(node.far).echoes()
    assert len(list(answers.of(SYN))) == 1
