"""Processes of a node as workloads: what they dial is known by their cgroup, what is dialled by the port.

The server of the two pods stands for the node: its namespace is shared by two workloads and a third process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import pytest

from nodeseal.capture import constants
from nodeseal.capture.backends.host_ebpf import shared_pins
from nodeseal.capture.bypass import extent_entries, node_entries, peer_entries
from nodeseal.capture.errors import AddressInUseError, CaptureError, CgroupGoneError
from nodeseal.capture.journal import Journal
from nodeseal.capture.listeners import set_mark
from nodeseal.capture.natives import Owner
from nodeseal.capture.workload import CaptureTarget
from nodeseal.linux import nftables, xtables
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, PortRange
from nodeseal.mesh.extent import Extent
from nodeseal.mesh.host import OWN_NAMESPACE, HostPlace
from support.connection import echoes
from support.host_process import Cgroup, Dialled, HostProcess
from support.namespaces import Namespace, iptables_rules
from support.netfilter import nft, rule, tracked
from support.patience import wait_for
from support.pods import SERVER, SERVER_6, Pods
from support.tcp_table import ports_in_use

pytestmark = pytest.mark.ebpf_only("processes of a node are captured by eBPF only")

OUTBOUND, INBOUND = 0, 1
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h


class Scene(NamedTuple):
    """The pods, and the cgroups of the processes on the node."""

    pods: Pods
    cgroups: Cgroup
    stack: contextlib.ExitStack

    def target(self, name: str, *ports: int, cgroup: str = "", open_on_failure: bool = False) -> CaptureTarget:
        """A workload in the cgroup of its name."""
        place = HostPlace(cgroup or self.cgroups.make(name), tuple(PortRange(port, port) for port in ports))
        addresses = self.pods.server_target.addresses
        return CaptureTarget(f"default/{name}", self.pods.server.name, addresses, open_on_failure, place)

    def process(self, cgroup: str = "") -> HostProcess:
        """A process on the node; "": in no cgroup of a workload."""
        return self.stack.enter_context(HostProcess(self.pods.server.name, self.cgroups.make(cgroup) if cgroup else ""))


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Cgroup() as cgroups, Pods(tmp_path, version=request.param) as pods, contextlib.ExitStack() as stack:
        yield Scene(pods, cgroups, stack)


def test_process_reaches_what_is_outside_the_mesh_when_nobody_runs(scene: Scene) -> None:
    pods = scene.pods
    echo = pods.echo(pods.client)
    capture = pods.capture()
    captured = capture.enrol(scene.target("vector"))
    relay, cookie = pods.relay(captured), captured.cookie
    process = scene.process("vector")
    assert process.dial((pods.client_at, 8080)).echoes()
    assert len(relay.flows) == 1
    mesh = Extent((ip_network("10.91.2.0/24"), ip_network("fd91:2::/64")))
    capture.bypass().change(extent_entries(mesh), ())
    relay.close()
    capture.close()
    assert process.dial((pods.client_at, 8080)).echoes()
    assert len(echo.peers) == 2
    later = pods.capture()
    assert [native.owner for native in later.natives().values()] == [Owner(cookie, 1)]
    later.adopt()
    later.release(scene.target("vector"))
    assert later.native_totals() == {}


def test_each_connection_goes_to_the_listener_of_the_workload_whose_process_dials(scene: Scene) -> None:
    pods = scene.pods
    echo = pods.echo(pods.client)
    capture = pods.capture()
    relays = {name: pods.relay(capture.enrol(scene.target(name))) for name in ("vector", "registry")}
    for name in ("vector", "registry"):
        dialled = scene.process(name).dial((pods.client_at, 8080))
        assert dialled.echoes()
        assert dialled.mark & constants.MARK_HOST_MASK == constants.MARK_HOST
        (flow,) = relays[name].flows
        assert (flow.role, flow.source, flow.destination) == (
            OUTBOUND,
            (pods.server_at, dialled.port),
            (pods.client_at, 8080),
        )
    assert len(echo.peers) == 2


def test_a_process_in_a_cgroup_below_belongs_to_the_workload(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    relay = pods.relay(pods.capture().enrol(scene.target("vector")))
    assert scene.process("vector/worker").dial((pods.client_at, 8080)).echoes()
    assert len(relay.flows) == 1


def test_of_two_workloads_the_one_with_the_nearer_cgroup_counts(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    capture = pods.capture()
    # As for an enrolled peer, towards which the mark of an application gives way.
    with contextlib.closing(capture.bypass()) as bypass:
        bypass.change(peer_entries(pods.client_target.addresses, NO_EXCLUSIONS), ())
    inner = scene.target("agent", cgroup=scene.cgroups.make("vector", "agent"))
    relays = [pods.relay(capture.enrol(target)) for target in (scene.target("vector"), inner)]
    assert scene.process("vector/agent").dial((pods.client_at, 8080)).echoes()
    assert [len(relay.flows) for relay in relays] == [0, 1]
    assert scene.process("vector").dial((pods.client_at, 8080)).echoes()
    assert [len(relay.flows) for relay in relays] == [1, 1]


def test_processes_of_other_cgroups_are_left_alone(scene: Scene) -> None:
    pods = scene.pods
    echo = pods.echo(pods.client)
    relay = pods.relay(pods.capture().enrol(scene.target("vector")))
    for process in (scene.process(), scene.process("other")):
        dialled = process.dial((pods.client_at, 8080))
        assert dialled.echoes()
        assert dialled.mark == 0
        assert echo.sources[-1] == (pods.server_at, dialled.port)
    assert relay.flows == []


def test_a_process_of_the_cgroup_in_another_namespace_is_left_alone(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(scene.target("vector")))
    with HostProcess(pods.client.name, scene.cgroups.make("vector")) as container:
        dialled = container.dial((pods.server_at, 8080))
        assert dialled.echoes()
        assert dialled.mark == 0
    assert relay.flows == []


@pytest.mark.parametrize("cookies", [0, 1, 2])
def test_what_is_dialled_is_known_by_the_port(scene: Scene, cookies: int) -> None:
    pods = scene.pods
    pods.server.sysctl("net/ipv4/tcp_syncookies", cookies)
    capture = pods.capture()
    relays, processes = {}, {}
    for name, port in (("vector", 9000), ("registry", 5000)):
        processes[port] = scene.process(name)
        processes[port].listen(port)
        relays[port] = pods.relay(capture.enrol(scene.target(name, port)))
    other = scene.process()
    other.listen(2222)
    for port in (9000, 5000):
        connection = pods.dial(pods.client, (pods.server_at, port))
        assert echoes(connection)
        (flow,) = relays[port].flows
        assert (flow.role, flow.source, flow.destination) == (
            INBOUND,
            connection.getsockname()[:2],
            (pods.server_at, port),
        )
        assert [address for address, _ in processes[port].peers()] == [pods.client_at]
    connection = pods.dial(pods.client, (pods.server_at, 2222))
    assert echoes(connection)
    assert other.peers() == [connection.getsockname()[:2]]
    assert all(len(relay.flows) == 1 for relay in relays.values())
    assert not any(capture.errors().values())


def test_the_nodes_other_addresses_lead_to_the_workload_as_well(scene: Scene) -> None:
    pods = scene.pods
    server = scene.process("vector")
    server.listen(9000)
    other = "10.91.2.77" if pods.version == 4 else "fd91:2::77"
    pods.server.add_address("eth0", f"{other}/{24 if pods.version == 4 else 64}")
    capture = pods.capture()
    with contextlib.closing(capture.bypass()) as bypass:
        own = (*pods.server_target.addresses, ip_address(other))
        bypass.change(node_entries(own, ()), ())
    relay = pods.relay(capture.enrol(scene.target("vector", 9000)))
    connection = pods.dial(pods.client, (other, 9000))
    assert echoes(connection)
    assert [flow.destination for flow in relay.flows] == [(other, 9000)]
    assert [address for address, _ in server.peers()] == [pods.client_at]
    loopback = "127.0.0.1" if pods.version == 4 else "::1"
    for address in (other, loopback):
        assert scene.process().dial((address, 9000)).echoes()
    assert len(relay.flows) == 1
    capture.stop_new(scene.target("vector", 9000))
    assert echoes(connection)
    assert echoes(pods.dial(pods.client, (other, 9000)))
    assert len(relay.flows) == 1


def test_addresses_that_the_operator_trusts_reach_the_application_directly(scene: Scene) -> None:
    pods = scene.pods
    server = scene.process("vector")
    server.listen(9000)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(scene.target("vector", 9000)))
    with contextlib.closing(capture.bypass()) as bypass:
        bypass.change(node_entries((), (ip_network(pods.client_at),)), ())
    connection = pods.dial(pods.client, (pods.server_at, 9000))
    assert echoes(connection)
    assert server.peers() == [connection.getsockname()[:2]]
    assert relay.flows == []


def test_much_data_goes_both_ways(scene: Scene) -> None:
    pods = scene.pods
    scene.process("vector").listen(9000)
    pods.relay(pods.capture().enrol(scene.target("vector", 9000)))
    connection = pods.dial(pods.client, (pods.server_at, 9000))
    for _ in range(20):
        assert echoes(connection, b"4111" * 16000)


def test_a_port_where_nobody_listens_is_refused(scene: Scene) -> None:
    pods = scene.pods
    pods.relay(pods.capture().enrol(scene.target("vector", 9000)))
    connection = pods.dial(pods.client, (pods.server_at, 9000))
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_the_nodes_own_connections_to_a_port_stay_direct(scene: Scene) -> None:
    pods = scene.pods
    server = scene.process("vector")
    server.listen(9000)
    relay = pods.relay(pods.capture().enrol(scene.target("vector", 9000)))
    for address in (pods.server_at, "::1" if pods.version == 6 else "127.0.0.1"):
        assert scene.process().dial((address, 9000)).echoes()
    assert relay.flows == []
    assert len(server.peers()) == 2


def test_a_port_that_is_used_again_after_time_wait_is_captured(scene: Scene) -> None:
    pods = scene.pods
    echo = pods.echo(pods.client)
    relay = pods.relay(pods.capture().enrol(scene.target("vector")))
    process = scene.process("vector")
    for count in range(1, 4):
        dialled = process.dial((pods.client_at, 8080), source_port=45678)
        assert dialled.echoes()
        echo.hang_up()  # the far side, and so the core, closes first
        wait_for(dialled.ended, "the end arrives")
        dialled.close()
        wait_for(lambda: 45678 not in pods.server.run(ports_in_use), "the process's side is closed")
        assert len(relay.flows) == count


def test_connections_older_than_enrolment_go_on(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    process = scene.process("vector")
    process.listen(9000)
    outbound = process.dial((pods.client_at, 8080))
    inbound = pods.dial(pods.client, (pods.server_at, 9000))
    assert outbound.echoes()
    assert echoes(inbound)
    relay = pods.relay(pods.capture().enrol(scene.target("vector", 9000)))
    assert outbound.echoes()
    assert echoes(inbound)
    assert relay.flows == []


def test_captured_connections_go_on_when_the_workload_leaves_and_new_ones_go_direct(scene: Scene) -> None:
    pods = scene.pods
    echo = pods.echo(pods.client)
    process = scene.process("vector")
    process.listen(9000)
    target = scene.target("vector", 9000)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(target))
    outbound, inbound = process.dial((pods.client_at, 8080)), pods.dial(pods.client, (pods.server_at, 9000))
    assert outbound.echoes()
    assert echoes(inbound)
    capture.stop_new(target)
    assert outbound.echoes()
    assert echoes(inbound)
    direct = process.dial((pods.client_at, 8080))
    assert direct.echoes()
    assert (direct.mark, echo.sources[-1][1]) == (0, direct.port)
    assert echoes(pods.dial(pods.client, (pods.server_at, 9000)))
    assert len(relay.flows) == 2
    capture.enrol(target)
    assert process.dial((pods.client_at, 8080)).echoes()
    assert len(relay.flows) == 3


def test_nothing_is_left_when_the_last_workload_has_left(scene: Scene) -> None:
    pods = scene.pods
    before = pods.server.state()
    capture = pods.capture()
    targets = [scene.target("vector", 9000), scene.target("registry", 5000)]
    for target in targets:
        capture.enrol(target)
    assert pods.server.state() != before
    process = scene.process("registry")
    process.listen(5000)
    relay = pods.relay(capture.captured["default/registry"])
    capture.stop_new(targets[0])
    capture.release(targets[0])
    # The other one has lost nothing by it.
    assert echoes(pods.dial(pods.client, (pods.server_at, 5000)))
    pods.echo(pods.client)
    assert process.dial((pods.client_at, 8080)).echoes()
    assert len(relay.flows) == 2
    relay.close()
    capture.stop_new(targets[1])
    capture.release(targets[1])
    assert pods.server.state() == before
    assert sorted(path.name for path in (pods.run_dir() / "bpf").glob("ns-*")) == []


def test_cleanup_leaves_nothing(scene: Scene) -> None:
    pods = scene.pods
    before = pods.server.state()
    capture = pods.capture()
    for target in (scene.target("vector", 9000), scene.target("registry", 5000)):
        capture.enrol(target)
    capture.close()
    pods.cleanup()
    assert pods.server.state() == before
    assert not pods.run_dir().exists() or not any(pods.run_dir().iterdir())


def test_the_namespace_is_found_from_outside_although_no_process_lives_in_it(scene: Scene) -> None:
    with NetworkNamespace.open(scene.pods.server.name) as namespace:
        cookie = namespace.cookie
    with NetworkNamespace.find(OWN_NAMESPACE, cookie) as found:
        assert found.cookie == cookie


def test_the_settings_of_the_node_stay_what_they_are(scene: Scene) -> None:
    pods = scene.pods
    pods.capture().enrol(scene.target("vector", 9000))
    for name in ("net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"):
        assert pods.server.sysctl(name) == "0"


def test_a_new_agent_adopts_what_is_there(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    process = scene.process("vector")
    process.listen(9000)
    target = scene.target("vector", 9000)
    first = pods.capture()
    held = first.enrol(target)
    relay = pods.relay(held)
    first.close()
    second = pods.capture()
    (captured,) = second.adopt()
    assert (captured.target.host, captured.target.addresses) == (target.host, target.addresses)
    second.take_listeners(captured, {role: relay.fileno(role) for role in (OUTBOUND, INBOUND)})
    assert process.dial((pods.client_at, 8080)).echoes()
    assert echoes(pods.dial(pods.client, (pods.server_at, 9000)))
    assert [flow.role for flow in relay.flows] == [OUTBOUND, INBOUND]


def test_what_a_version_without_rules_captured_gets_them(scene: Scene) -> None:
    pods = scene.pods
    before = pods.server.state()
    pods.echo(pods.client)
    process = scene.process("vector")
    first = pods.capture()
    held = first.enrol(scene.target("vector", 9000))
    relay = pods.relay(held)
    old = process.dial((pods.client_at, 8080))
    assert old.echoes()
    first.close()
    # What such a version leaves: no rules, nothing at lo's egress, and another mark on the listener.
    journal = Journal.load(pods.run_dir())
    (entry,) = journal.entries.values()
    (holder,) = entry.untracked
    nft(pods.server.name, f"delete table inet {holder.split()[1]}\n")
    (pods.run_dir() / "bpf" / shared_pins(entry) / "hold-1").unlink()
    set_mark(relay.fileno(OUTBOUND), constants.MARK_CORE)
    entry.untracked, entry.programs = [], "older"
    journal.save()
    second = pods.capture()
    (captured,) = second.adopt()
    second.take_listeners(captured, {role: relay.fileno(role) for role in (OUTBOUND, INBOUND)})
    assert Journal.load(pods.run_dir()).entries[captured.target.name].untracked == [holder]
    with socket.socket(fileno=os.dup(relay.fileno(OUTBOUND))) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == constants.MARK_ANSWER
    assert old.echoes()
    # Something that uses conntrack, without which it knows nothing.
    with rule(pods.server.name, "type filter hook output priority 0", "ct state new counter"):
        assert not is_tracked(pods, process.dial((pods.client_at, 8080)))
        assert is_tracked(pods, scene.process().dial((pods.client_at, 8080)))
    with rule(pods.server.name, "type filter hook postrouting priority -150", "meta mark set 0x7"):
        assert process.dial((pods.client_at, 8080)).echoes()
    assert [flow.role for flow in relay.flows] == [OUTBOUND] * 3
    pods.cleanup()
    assert pods.server.state() == before


def test_where_there_are_no_nf_tables_rules_of_iptables_do_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    pods = scene.pods
    monkeypatch.setattr(nftables, "put_untracking", refuse)
    before = pods.server.state()
    pods.echo(pods.client)
    capture = pods.capture()
    targets = [scene.target("vector", 9000), scene.target("registry", 5000)]
    relays = [pods.relay(capture.enrol(target)) for target in targets]
    entry = Journal.load(pods.run_dir()).entries["default/vector"]
    assert [one.split()[0] for one in entry.untracked] == ["iptables-nft", "ip6tables-nft"][: len(entry.versions)]
    with rule(pods.server.name, "type filter hook output priority 0", "ct state new counter"):
        assert not is_tracked(pods, scene.process("vector").dial((pods.client_at, 8080)))
        assert is_tracked(pods, scene.process().dial((pods.client_at, 8080)))
    assert [len(relay.flows) for relay in relays] == [1, 0]
    capture.stop_new(targets[0])
    capture.release(targets[0])
    assert any("--notrack" in rule for rule in pods.server.run(iptables_rules))
    pods.cleanup()
    assert pods.server.state() == before


def test_where_no_rule_can_be_made_it_is_said_and_what_nat_sends_elsewhere_is_held(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = scene.pods
    monkeypatch.setattr(nftables, "put_untracking", refuse)
    monkeypatch.setattr(xtables, "choose", refuse_program)
    pods.echo(pods.client)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(scene.target("vector")))
    assert capture.tracked == "nf_tables: Operation not supported; iptables: it is not installed"
    process = scene.process("vector")
    assert process.dial((pods.client_at, 8080)).echoes()
    family, service = ("ip", "10.77.200.1") if pods.version == 4 else ("ip6", "fd77::200:1")
    translation = f"{family} daddr {service} meta mark set meta mark or 0x4000 dnat {family} to {pods.client_at}"
    with rule(pods.server.name, "type nat hook output priority -100", translation):
        # The SYN is held; when it is sent again conntrack translates its address without the rule, and the mark stays.
        assert process.dial((service, 8080), timeout=30).echoes()
    assert capture.errors()["egress_held"] == 1
    assert [flow.destination for flow in relay.flows] == [(pods.client_at, 8080)] * 2


def is_tracked(pods: Pods, dialled: Dialled) -> bool:
    """Whether conntrack of the node knows the connection once it has carried something."""
    assert dialled.echoes()
    return ((pods.server_at, dialled.port), (pods.client_at, 8080)) in tracked(pods.server.name)


def refuse(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def refuse_program(_family: int) -> str:
    raise CaptureError("it is not installed")


def test_with_nobody_at_the_listeners_connections_fail(scene: Scene) -> None:
    pods = scene.pods
    echo = pods.echo(pods.client)
    process = scene.process("vector")
    process.listen(9000)
    capture = pods.capture()
    capture.enrol(scene.target("vector", 9000))
    capture.close()
    with pytest.raises((TimeoutError, ConnectionError)):
        process.dial((pods.client_at, 8080), timeout=0.5)
    with pytest.raises((TimeoutError, ConnectionError)):
        pods.dial(pods.client, (pods.server_at, 9000), timeout=0.5)
    assert process.peers() == echo.peers == []


def test_one_that_is_open_on_failure_goes_direct_then(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    process = scene.process("vector")
    process.listen(9000)
    capture = pods.capture()
    capture.enrol(scene.target("vector", 9000, open_on_failure=True))
    capture.close()
    assert process.dial((pods.client_at, 8080)).echoes()
    assert echoes(pods.dial(pods.client, (pods.server_at, 9000)))


def test_a_cgroup_that_is_made_anew_is_captured_again(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    target = scene.target("vector")
    capture = pods.capture()
    relay = pods.relay(capture.enrol(target))
    scene.cgroups.remove("vector")
    capture.refresh()
    process = scene.process("vector")
    capture.refresh()
    assert process.dial((pods.client_at, 8080)).echoes()
    assert len(relay.flows) == 1


def test_a_client_behind_a_new_device_is_answered(scene: Scene) -> None:
    pods = scene.pods
    scene.process("vector").listen(9000)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(scene.target("vector", 9000)))
    pod = pods.net.create("pod")
    near, far = ("10.91.7.1/24", "10.91.7.2/24") if pods.version == 4 else ("fd91:7::1/64", "fd91:7::2/64")
    pods.net.join(pods.server, "pod0", near, pod, "eth0", far)
    pod.ip("route", "add", SERVER if pods.version == 4 else SERVER_6, "via", near.partition("/")[0])
    capture.refresh()
    assert echoes(pods.dial(pod, (pods.server_at, 9000)))
    assert len(relay.flows) == 1


def tunnel_device(namespace: Namespace, name: str) -> int:
    """A device without Ethernet headers, by the descriptor that its packets go through (tuntap.rst of the kernel)."""

    def make() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        return fd

    return namespace.run(make)


def pump(source: int, target: int, stop: int) -> None:
    """Carry packets from one device to another until `stop` can be read."""
    while True:
        ready, _, _ = select.select([source, stop], [], [])
        if stop in ready:
            return
        os.write(target, os.read(source, 65536))


def test_a_client_behind_a_device_without_ethernet_headers_is_answered(scene: Scene) -> None:
    pods = scene.pods
    scene.process("vector").listen(9000)
    far = pods.net.create("far")
    near, there = ("10.91.8.1/24", "10.91.8.2/24") if pods.version == 4 else ("fd91:8::1/64", "fd91:8::2/64")
    devices = [tunnel_device(pods.server, "tun0"), tunnel_device(far, "tun0")]
    for namespace, address in ((pods.server, near), (far, there)):
        namespace.add_address("tun0", address)
        namespace.ip("link", "set", "tun0", "up")
    far.ip("route", "add", SERVER if pods.version == 4 else SERVER_6, "dev", "tun0")
    stop, stopper = os.pipe()
    threads = [threading.Thread(target=pump, args=(*pair, stop)) for pair in (devices, devices[::-1])]
    for thread in threads:
        thread.start()
    try:
        capture = pods.capture()
        relay = pods.relay(capture.enrol(scene.target("vector", 9000)))
        connection = pods.dial(far, (pods.server_at, 9000))
        for _ in range(5):
            assert echoes(connection, b"4111" * 16000)
        assert len(relay.flows) == 1
        assert capture.errors()["return_failed"] == 0
    finally:
        os.close(stopper)
        for thread in threads:
            thread.join()
        for fd in (stop, *devices):
            os.close(fd)


def test_nobody_can_take_the_mark_of_a_workload(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    relay = pods.relay(pods.capture().enrol(scene.target("vector")))
    for process in (scene.process(), scene.process("vector")):
        with pytest.raises(PermissionError):
            process.dial((pods.client_at, 8080), mark=constants.host_mark(1))
        assert process.dial((pods.client_at, 8080), mark=0x4E53).echoes()
    assert relay.flows == []


def test_an_application_cannot_take_its_connection_off_its_way(scene: Scene) -> None:
    pods = scene.pods
    pods.echo(pods.client)
    pods.relay(pods.capture().enrol(scene.target("vector")))
    dialled = scene.process("vector").dial((pods.client_at, 8080))
    with pytest.raises(PermissionError):
        dialled.set_mark(7)
    assert dialled.echoes()


def test_rounds_leave_nothing(scene: Scene) -> None:
    pods = scene.pods
    capture = pods.capture()
    targets = [scene.target("vector", 9000), scene.target("registry", 5000)]

    def round_trip() -> tuple[str, list[str], int]:
        for target in targets:
            capture.enrol(target)
        for target in targets:
            capture.stop_new(target)
            capture.release(target)
        pins = sorted(path.name for path in (pods.run_dir() / "bpf").iterdir())
        return pods.server.state(), pins, len(list(Path("/proc/self/fd").iterdir()))

    first = round_trip()
    for _ in range(10):
        last = round_trip()
    assert last == first


def test_ports_can_be_changed_while_it_is_captured(scene: Scene) -> None:
    pods = scene.pods
    process = scene.process("vector")
    for port in (9000, 9001):
        process.listen(port)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(scene.target("vector", 9000)))
    capture.enrol(scene.target("vector", 9001))
    for port in (9000, 9001):
        assert echoes(pods.dial(pods.client, (pods.server_at, port)))
    assert [flow.destination[1] for flow in relay.flows] == [9001]


def test_a_service_that_does_not_run_is_not_captured(scene: Scene) -> None:
    pods = scene.pods
    before = pods.server.state()
    capture = pods.capture()
    with pytest.raises(CgroupGoneError, match=r"cgroup not found: .*/vector of default/vector does not exist"):
        capture.enrol(scene.target("vector", 9000, cgroup=scene.cgroups.name("vector")))
    assert pods.server.state() == before


def test_a_namespace_is_either_one_workloads_or_the_nodes(scene: Scene) -> None:
    pods = scene.pods
    capture = pods.capture()
    capture.enrol(scene.target("vector", 9000))
    with pytest.raises(CaptureError, match="is default/vector's"):
        capture.enrol(pods.server_target)


def test_the_mesh_port_must_be_free_for_the_first_of_them(scene: Scene) -> None:
    pods = scene.pods
    scene.process().listen(constants.HBONE_PORT)
    with pytest.raises(AddressInUseError):
        pods.capture().enrol(scene.target("vector", 9000))


def test_workloads_of_a_node_have_marks_of_their_own(scene: Scene) -> None:
    capture = scene.pods.capture()
    for name in ("vector", "registry"):
        capture.enrol(scene.target(name))
    for number in (1, 2):
        assert scene.pods.server.rule_exists(constants.host_mark(number), version=scene.pods.version)
