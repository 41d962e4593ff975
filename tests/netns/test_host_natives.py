"""What a process of the node dials goes from kernel to kernel if the core says so: with a reader in the place of the
core, and rules of the node on the way.

The server of the two pods stands for the node: its namespace is shared by two workloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.listeners import PARKED
from nodeseal.capture.natives import Owner, Place
from nodeseal.capture.node import NodeCapture
from nodeseal.capture.workload import Captured, CaptureTarget
from nodeseal.linux.sock_diag import end_connection
from nodeseal.mesh.host import HostPlace
from support.host_process import Cgroup, HostProcess
from support.netfilter import rule, tracked
from support.parking import SYN, Answers, Parked, Sender, again, notice
from support.patience import wait_for
from support.pods import Pods

pytestmark = pytest.mark.ebpf_only("processes of the node are captured by eBPF only")

PORT = 8080
ANEW = "type route hook output priority -149"  # routed anew when the mark has changed


class Node:
    """A capture for processes of a node, whose SYNs a reader sends on; an echo server elsewhere."""

    def __init__(self, pods: Pods, cgroups: Cgroup) -> None:
        self.pods, self._cgroups = pods, cgroups
        self.before = pods.server.state()
        self.echo = pods.echo(pods.client)
        self.capture: NodeCapture = pods.capture()
        self.far = (pods.client_at, PORT)
        self.family = "ip6" if pods.version == 6 else "ip"
        self.sender = Sender(pods.server, constants.MARK_NATIVE)
        pods.at_end(self.sender.close)

    def send_on(self, syn: Parked) -> None:
        """As the core does it."""
        self.sender.send(notice(syn.packet), constants.MARK_NATIVE)
        self.sender.send(again(syn.packet), 0)

    def capture_process(self, name: str, *, native: bool = True) -> Captured:
        place = HostPlace(self._cgroups.make(name), ())
        target = CaptureTarget(f"default/{name}", self.pods.server.name, self.pods.server_target.addresses, host=place)
        captured = self.capture.enrol(target)
        self.pods.relay(captured)
        self.capture.park(captured, on=True, native=native)
        return captured

    def answers(self, captured: Captured, answer: Callable[[Parked], None] | None = None) -> Answers:
        def verdict(syn: Parked) -> bool | None:
            (answer or self.send_on)(syn)
            return None

        answers = Answers(self.pods.server, captured.listeners[PARKED], verdict)
        self.pods.at_end(answers.close)
        return answers

    def process(self, name: str) -> HostProcess:
        process = HostProcess(self.pods.server.name, self._cgroups.make(name))
        self.pods.at_end(process.close)
        return process

    def owner(self, captured: Captured, number: int = 1) -> Owner:
        return Owner(captured.cookie, number)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    with Cgroup() as cgroups, Pods(tmp_path, version=request.param) as pods:
        yield Node(pods, cgroups)


def test_what_the_core_sends_out_is_native(node: Node) -> None:
    captured = node.capture_process("vector")
    node.answers(captured)
    dialled = node.process("vector").dial(node.far)
    assert dialled.mark == 0
    assert dialled.echoes("12345")
    assert node.echo.sources == [(node.pods.server_at, dialled.port)]
    ((_, native),) = node.capture.natives().items()
    assert (native.owner, native.inbound, native.reason) == (node.owner(captured), False, constants.NATIVE_DECIDED)
    assert native.source == (ip_address(node.pods.server_at), dialled.port)
    dialled.close()
    wait_for(lambda: not node.capture.natives(), "it is closed")
    place = Place(node.owner(captured), False, constants.NATIVE_DECIDED, ip_address(node.pods.client_at))
    total = node.capture.native_totals()[place]
    assert (total.opened, total.closed, total.acknowledged) == (1, 1, 5)


def test_a_closed_port_refuses_by_itself(node: Node) -> None:
    node.answers(node.capture_process("vector"))
    with pytest.raises(ConnectionRefusedError):
        node.process("vector").dial((node.pods.client_at, 9999))
    assert node.capture.natives() == {}
    assert node.capture.native_totals() == {}


def test_the_nodes_rules_do_with_it_as_with_any_other(node: Node) -> None:
    """A virtual address, as of a service, and another port of the client's: conntrack knows the connection."""
    captured = node.capture_process("vector")
    node.answers(captured)
    virtual = "10.99.0.1" if node.pods.version == 4 else "fd99::1"
    to_virtual = f"{node.family} daddr {virtual} meta mark == 0 dnat {node.family} to {node.pods.client_at}"
    others = f"{node.family} daddr {node.pods.client_at} meta mark == 0 masquerade to :50000-50009 random"
    with (
        rule(node.pods.server.name, "type nat hook output priority -100", to_virtual),
        rule(node.pods.server.name, "type nat hook postrouting priority 100", f"meta l4proto tcp {others}"),
    ):
        dialled = node.process("vector").dial((virtual, PORT))
        assert dialled.echoes()
        assert ((node.pods.server_at, dialled.port), (virtual, PORT)) in tracked(node.pods.server.name)
    ((address, port),) = node.echo.sources
    assert address == node.pods.server_at
    assert port in range(50000, 50010)
    ((_, native),) = node.capture.natives().items()
    assert native.destination == (ip_address(virtual), PORT)


def test_a_rule_for_classes_of_traffic_changes_nothing(node: Node) -> None:
    node.answers(node.capture_process("vector"))
    with rule(node.pods.server.name, "type filter hook postrouting priority -150", "meta mark set 0x7"):
        assert node.process("vector").dial(node.far).echoes()
    assert len(node.capture.natives()) == 1


def test_without_notice_a_connection_is_not_made(node: Node) -> None:
    """It stays captured, and nothing of it leaves."""
    node.answers(node.capture_process("vector"), lambda syn: node.sender.send(again(syn.packet), 0))
    with pytest.raises(ConnectionError):
        node.process("vector").dial(node.far).echoes()
    assert node.capture.natives() == {}


def test_a_notice_that_a_rule_takes_elsewhere_does_not_leave(node: Node) -> None:
    node.answers(node.capture_process("vector"))
    taken = f"meta mark {constants.MARK_NATIVE:#x} meta mark set 0x7"
    with rule(node.pods.server.name, ANEW, taken), pytest.raises(ConnectionError):
        node.process("vector").dial(node.far).echoes()
    assert node.capture.errors()["egress_held"] >= 1
    assert node.capture.natives() == {}


def test_a_notice_of_an_older_connection_takes_no_mark_off(node: Node) -> None:
    captured = node.capture_process("vector")

    def answer(syn: Parked) -> None:
        at = 20 if node.pods.version == 4 else 40
        older = syn.packet[: at + 4] + bytes(value ^ 0x55 for value in syn.packet[at + 4 : at + 8])
        node.sender.send(notice(older), constants.MARK_NATIVE)
        released.send(again(syn.packet), syn.mark)

    released = Sender(node.pods.server)
    node.pods.at_end(released.close)
    node.answers(captured, answer)
    dialled = node.process("vector").dial(node.far)
    assert dialled.mark == constants.host_mark(1)
    assert dialled.echoes()
    assert node.capture.natives() == {}


def test_the_core_is_told_how_many_each_has_and_whether_it_may(node: Node) -> None:
    vector, registry = node.capture_process("vector"), node.capture_process("registry")
    seen = {name: node.answers(captured) for name, captured in (("vector", vector), ("registry", registry))}
    processes = {name: node.process(name) for name in seen}
    for name in ("vector", "vector", "registry"):
        assert processes[name].dial(node.far).echoes()
    values = {name: [one.value for one in answers.of(SYN)] for name, answers in seen.items()}
    assert values == {"vector": [1 << 31, 1 << 31 | 1], "registry": [1 << 31]}
    for captured in (vector, registry):
        node.capture.park(captured, on=True, native=False)
    for one in seen.values():
        one.close()
    node.answers(vector, lambda syn: node.sender.send(again(syn.packet), syn.mark))
    assert processes["vector"].dial(node.far).mark == constants.host_mark(1)


def test_it_is_ended_alone(node: Node) -> None:
    captured = node.capture_process("vector")
    node.answers(captured)
    process = node.process("vector")
    dialled, other = process.dial(node.far), process.dial(node.far)
    (native,) = (one for one in node.capture.natives().values() if one.source[1] == dialled.port)
    assert node.pods.server.run(lambda: end_connection(native.source, native.destination, native.cookie))
    with pytest.raises(ConnectionError):
        dialled.echoes()
    assert other.echoes()
    wait_for(lambda: len(node.capture.natives()) == 1, "it is counted as closed")


def test_another_address_of_the_node_is_reached(node: Node) -> None:
    captured = node.capture_process("vector")
    node.answers(captured)
    near = "10.91.2.77" if node.pods.version == 4 else "fd91:2::77"
    node.pods.server.add_address("eth0", f"{near}/{24 if node.pods.version == 4 else 64}")
    node.pods.echo(node.pods.server)
    assert node.process("vector").dial((near, PORT)).echoes()
    assert len(node.capture.natives()) == 1


def test_removal_leaves_nothing_and_the_connection(node: Node) -> None:
    captured = node.capture_process("vector")
    node.answers(captured)
    dialled = node.process("vector").dial(node.far)
    assert dialled.echoes()
    node.capture.stop_new(captured.target)
    node.capture.release(captured.target)
    assert dialled.echoes()
    assert node.capture.native_totals() == {}
    node.capture.close()
    node.pods.cleanup()
    assert dialled.echoes()
    assert node.pods.server.state() == node.before
