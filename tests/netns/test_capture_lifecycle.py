"""What capture leaves on the machine, and how it is found again and removed: restarts, kill -9, cleanup."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeseal.capture import constants, listeners
from nodeseal.capture.backends import pod_ebpf
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.bpf import steering
from nodeseal.capture.cleanup import cleanup
from nodeseal.capture.journal import Journal
from nodeseal.capture.workload import CaptureTarget
from nodeseal.linux import bpf
from nodeseal.linux.cgroups import find_cgroup
from support.connection import echoes
from support.options import BACKEND
from support.patience import wait_for
from support.pods import SERVER, SERVER_6, Pods, compiled
from support.tcp_table import SYN_RECV, tcp_table

FILTERS = pytest.mark.ebpf_only("tc filters")
ANYTHING = ("u32", "match", "u32", "0", "0", "classid", "1:1")


@pytest.fixture(
    params=[(True, 4), (True, 6), (False, 4)],
    ids=["links-ipv4", "links-ipv6", "filters-ipv4"],
)
def pods(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pods]:
    tcx, version = request.param
    if not tcx and BACKEND.asked() is not Choice.EBPF:
        pytest.skip("eBPF only: tc filters are what it uses where there is no TCX")
    if tcx and not steering.probe_tcx():
        pytest.skip("the kernel has no TCX")
    with Pods(tmp_path, tcx=tcx, version=version) as made:
        yield made


@pytest.fixture
def filter_pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, tcx=False) as made:
        yield made


def attached(programs: list[int]) -> list[int]:
    """Which of these programs are attached to the cgroup tree. Other nodes on the machine come and go meanwhile."""
    fd = os.open(find_cgroup(), os.O_RDONLY)
    try:
        present = {program for _, kind in pod_ebpf.CGROUP_LINKS.values() for program in bpf.cgroup_programs(fd, kind)}
    finally:
        os.close(fd)
    return [program for program in programs if program in present]


def connect_programs(pods: Pods) -> list[int]:
    """The numbers of the programs that a node has attached to the cgroup tree; none if it captures by iptables."""
    if pods.backend is Choice.IPTABLES:
        assert not (pods.run_dir() / "bpf").exists()
        return []
    programs = []
    for name in pod_ebpf.CGROUP_LINKS:
        fd = bpf.pinned(pods.run_dir() / "bpf" / name)
        programs.append(bpf.link_program(fd))
        os.close(fd)
    assert attached(programs) == programs
    return programs


def agent_that_is_killed(pods: Pods, tmp_path: Path) -> None:
    """Another process captures both pods, and ends by SIGKILL."""
    script = tmp_path / "agent.py"
    script.write_text(
        "import signal, sys\n"
        "from ipaddress import ip_address\n"
        "from pathlib import Path\n"
        "from nodeseal.capture.bpf import runtime, steering\n"
        "from nodeseal.capture.bpf.compile import Compiled\n"
        "from nodeseal.capture.node import NodeCapture\n"
        "from nodeseal.capture.workload import CaptureTarget\n"
        "from nodeseal.capture.backends.backend import Choice\n"
        "runtime.compile_in_child = lambda: Compiled.from_json(Path(sys.argv[3]).read_text())\n"
        "if sys.argv[2] == 'filters':\n"
        "    steering.probe_tcx = lambda: False\n"
        "capture = NodeCapture(Path(sys.argv[1]), choice=Choice(sys.argv[4]))\n"
        "capture.prepare()\n"
        "for name, netns, addresses in zip(*[iter(sys.argv[5:])] * 3):\n"
        "    capture.enrol(CaptureTarget(name, netns, tuple(map(ip_address, addresses.split(',')))))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    programs = tmp_path / "compiled.json"
    programs.write_text(compiled().to_json())
    targets = [
        part
        for target in (pods.client_target, pods.server_target)
        for part in (target.name, target.netns, ",".join(map(str, target.addresses)))
    ]
    command = [sys.executable, str(script), str(pods.run_dir()), "links" if pods.tcx else "filters", str(programs)]
    command.append(pods.backend.value)
    command += map(str, targets)
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        pods.at_end(lambda: pods.cleanup())
        agent.send_signal(signal.SIGKILL)


def test_enrol_and_release_leave_the_namespace_as_it_was(pods: Pods) -> None:
    before = pods.client.state()
    capture = pods.capture()
    capture.enrol(pods.client_target)
    for version in (4, 6):
        wanted = version in {address.version for address in pods.client_target.addresses}
        assert pods.client.rule_exists(constants.MARK_CAPTURED, version=version) is wanted
        assert pods.client.rule_exists(constants.MARK_TO_APP, version=version) is wanted
        assert pods.client.route_exists(constants.ROUTE_TABLE, "local default dev lo", version=version) is wanted
    assert pods.steered(pods.client)
    assert pods.client.state() != before
    capture.stop_new(pods.client_target)
    capture.release(pods.client_target)
    assert pods.client.state() == before
    assert Journal.load(pods.run_dir()).entries == {}
    assert list((pods.run_dir() / "bpf").glob("ns-*")) == []


def test_stop_new_and_release_can_be_repeated(pods: Pods) -> None:
    before = pods.client.state()
    capture = pods.capture()
    capture.enrol(pods.client_target)
    for _ in range(2):
        capture.stop_new(pods.client_target)
    for _ in range(2):
        capture.release(pods.client_target)
    assert pods.client.state() == before


def test_enrol_twice_is_as_once(pods: Pods) -> None:
    pods.echo(pods.server)
    before = pods.client.state()
    capture = pods.capture()
    captured = capture.enrol(pods.client_target)
    once = pods.client.state()
    assert capture.enrol(pods.client_target) is captured
    assert pods.client.state() == once
    relay = pods.relay(captured)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(relay.flows) == 1
    capture.release(pods.client_target)
    assert pods.client.state() == before


def test_cleanup_with_nobody_running_twice(pods: Pods, tmp_path: Path) -> None:
    before = [pods.client.state(), pods.server.state()]
    agent_that_is_killed(pods, tmp_path)
    assert [pods.client.state(), pods.server.state()] != before
    programs = connect_programs(pods)
    first = cleanup(pods.run_dir())
    assert first.failed == []
    assert first.removed != []
    assert [pods.client.state(), pods.server.state()] == before
    assert attached(programs) == []
    assert list(pods.run_dir().iterdir()) == []
    second = cleanup(pods.run_dir())
    assert (second.removed, second.failed) == ([], [])


def test_cleanup_where_nothing_ever_was(tmp_path: Path) -> None:
    report = cleanup(tmp_path / "none")
    assert (report.removed, report.failed) == ([], [])


def test_cleanup_after_the_namespace_is_gone(pods: Pods, tmp_path: Path) -> None:
    agent_that_is_killed(pods, tmp_path)
    programs = connect_programs(pods)
    pods.client.close()
    report = cleanup(pods.run_dir())
    assert report.failed == []
    assert attached(programs) == []
    assert list(pods.run_dir().iterdir()) == []


@pytest.mark.ebpf_only("its programs are found without the journal, rules in namespaces are not")
def test_cleanup_without_the_journal_detaches_the_programs(pods: Pods, tmp_path: Path) -> None:
    agent_that_is_killed(pods, tmp_path)
    programs = connect_programs(pods)
    (pods.run_dir() / "capture.json").write_text("{")
    report = cleanup(pods.run_dir())
    assert len(report.failed) == 1
    assert "damaged" in report.failed[0]
    assert attached(programs) == []
    assert not (pods.run_dir() / "bpf").exists()
    (pods.run_dir() / "capture.json").unlink()


def test_nothing_passes_while_nobody_holds_the_listeners(pods: Pods, tmp_path: Path) -> None:
    """Fail closed: the programs outlive the agent, and drop what they can give to nobody."""
    echo = pods.echo(pods.server)
    outside = pods.echo(pods.router)
    agent_that_is_killed(pods, tmp_path)
    with pytest.raises(refusal(pods)):
        pods.dial(pods.client, (pods.client_gateway, 8080), timeout=0.5)
    with pytest.raises(TimeoutError):
        pods.dial(pods.router, (pods.server_at, 8080), timeout=0.5)
    assert echo.peers == []
    assert outside.peers == []
    if pods.backend is Choice.IPTABLES:  # TPROXY drops by itself, and counts nothing
        return
    errors = pods.capture().errors()
    assert errors["lookup_no_listener"] > 0
    assert errors["steer_no_listener"] > 0


def test_captured_syn_never_reaches_a_wildcard_listener_of_the_application(pods: Pods, tmp_path: Path) -> None:
    own = pods.echo(pods.client)
    agent_that_is_killed(pods, tmp_path)
    with pytest.raises(refusal(pods)):
        pods.dial(pods.client, (pods.server_at, 8080), timeout=0.5)
    assert own.peers == []


def refusal(pods: Pods) -> type[OSError]:
    """What a captured client gets while nobody holds the listener: see bpf/assign_lookup.c. TPROXY drops by itself."""
    at_once = pods.version == 6 and pods.backend is Choice.EBPF
    return ConnectionRefusedError if at_once else TimeoutError


def test_capture_works_on_while_the_core_holds_the_listeners(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))
    old = pods.dial(pods.client, (pods.server_at, 8080))
    capture.close()
    assert echoes(old)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(relay.flows) == 2


def test_new_agent_adopts_and_can_undo(pods: Pods) -> None:
    pods.echo(pods.server)
    before = pods.client.state()
    first = pods.capture()
    captured = first.enrol(pods.client_target)
    relay = pods.relay(captured)
    # What the relay does not take: those for HBONE.
    others = {role: os.dup(fd) for role, fd in captured.listeners.items() if role not in listeners.STEERED}
    cookie = captured.cookie
    first.close()
    programs = connect_programs(pods)
    second = pods.capture()
    assert connect_programs(pods) == programs
    (adopted,) = second.adopt()
    assert (adopted.target.name, adopted.cookie, adopted.phase) == ("default/client", cookie, "capturing")
    assert second.live_listeners(adopted) == {0, 1}
    held = {0: relay.fileno(0), 1: relay.fileno(1), **others}
    assert second.take_listeners(adopted, held) == []
    listeners.close_all(others)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(relay.flows) == 1
    second.stop_new(adopted.target)
    second.release(adopted.target)
    assert pods.client.state() == before


def test_new_agent_replaces_listeners_that_died(pods: Pods, tmp_path: Path) -> None:
    pods.echo(pods.server)
    agent_that_is_killed(pods, tmp_path)
    capture = pods.capture()
    adopted = {item.target.name: item for item in capture.adopt()}
    assert sorted(adopted) == ["default/client", "default/server"]
    for item in adopted.values():
        assert capture.live_listeners(item) == frozenset()
        assert sorted(capture.take_listeners(item, {})) == list(listeners.roles_of(item.target.addresses))
    relays = [pods.relay(item) for item in adopted.values()]
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert [len(relay.flows) for relay in relays] == [1, 1]


def test_leaving_workload_is_adopted_as_leaving(pods: Pods) -> None:
    pods.echo(pods.server)
    first = pods.capture()
    relay = pods.relay(first.enrol(pods.client_target))
    old = pods.dial(pods.client, (pods.server_at, 8080))
    first.stop_new(pods.client_target)
    first.close()
    second = pods.capture()
    (adopted,) = second.adopt()
    assert adopted.phase == "leaving"
    assert echoes(old)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(relay.flows) == 1


def test_adopt_drops_a_workload_whose_namespace_is_gone(pods: Pods, tmp_path: Path) -> None:
    agent_that_is_killed(pods, tmp_path)
    pods.client.close()
    capture = pods.capture()
    assert [item.target.name for item in capture.adopt()] == ["default/server"]
    assert sorted(Journal.load(pods.run_dir()).entries) == ["default/server"]


def test_adopt_finds_the_namespace_through_its_processes(pods: Pods, tmp_path: Path) -> None:
    agent_that_is_killed(pods, tmp_path)
    with pods.client.popen("sleep", "60") as process:
        wait_for(
            lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino == pods.client.inode,
            "the process is in the namespace",
        )
        pods.client.close()
        adopted = {item.target.name for item in pods.capture().adopt()}
        pods.cleanup()
        process.kill()
    assert adopted == {"default/client", "default/server"}


def test_adopt_removes_what_was_half_installed(pods: Pods, tmp_path: Path) -> None:
    before = pods.client.state()
    agent_that_is_killed(pods, tmp_path)
    journal = Journal.load(pods.run_dir())
    journal.entries["default/client"].state = "installing"
    journal.save()
    assert [item.target.name for item in pods.capture().adopt()] == ["default/server"]
    assert pods.client.state() == before


def test_pod_that_was_made_again_is_a_new_workload(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    old = capture.enrol(pods.client_target)
    again = pods.net.create("again")
    address, gateway, length = ("10.91.3.2", "10.91.3.1", 24) if pods.version == 4 else ("fd91:3::2", "fd91:3::1", 64)
    pods.net.join(again, "eth0", f"{address}/{length}", pods.router, "c0", f"{gateway}/{length}")
    again.ip(f"-{pods.version}", "route", "add", "default", "via", gateway)
    new = capture.enrol(CaptureTarget("default/client", again.name, (ip_address(address),)))
    assert new.cookie != old.cookie
    assert not pods.client.rule_exists(constants.MARK_CAPTURED, version=pods.version)
    relay = pods.relay(new)
    assert echoes(pods.dial(again, (pods.server_at, 8080)))
    assert len(relay.flows) == 1


def test_two_nodes_on_one_machine_do_not_touch_each_other(pods: Pods) -> None:
    pods.echo(pods.server)
    pods.capture("node1").enrol(pods.client_target)
    relay = pods.relay(pods.capture("node2").enrol(pods.server_target))
    pods.cleanup("node1")
    assert not pods.client.rule_exists(constants.MARK_CAPTURED, version=pods.version)
    assert pods.server.rule_exists(constants.MARK_TO_APP, version=pods.version)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(relay.flows) == 1


@FILTERS
def test_clsact_and_filters_of_others_are_kept(filter_pods: Pods) -> None:
    filter_pods.client.tc("qdisc", "add", "dev", "eth0", "clsact")
    filter_pods.client.tc("filter", "add", "dev", "eth0", "ingress", "prio", "1", *ANYTHING)
    filter_pods.client.tc("filter", "add", "dev", "eth0", "egress", "prio", "1", *ANYTHING)
    before = [filter_pods.client.tc("filter", "show", "dev", "eth0", side) for side in ("ingress", "egress")]
    capture = filter_pods.capture()
    capture.enrol(filter_pods.client_target)
    assert filter_pods.client.filter_exists("eth0")
    capture.release(filter_pods.client_target)
    assert [filter_pods.client.tc("filter", "show", "dev", "eth0", side) for side in ("ingress", "egress")] == before


@FILTERS
def test_filters_see_ipv6_as_well(tmp_path: Path) -> None:
    with Pods(tmp_path, tcx=False, version=6) as pods:
        pods.echo(pods.server)
        before = pods.server.state()
        capture = pods.capture()
        relay = pods.relay(capture.enrol(pods.server_target))
        for address in (SERVER, SERVER_6):
            assert echoes(pods.dial(pods.client, (address, 8080)))
        assert [flow.destination[0] for flow in relay.flows] == [SERVER, SERVER_6]
        capture.release(pods.server_target)
        assert pods.server.state() == before


@FILTERS
def test_clsact_that_others_use_by_now_is_kept(filter_pods: Pods) -> None:
    capture = filter_pods.capture()
    capture.enrol(filter_pods.client_target)
    filter_pods.client.tc("filter", "add", "dev", "eth0", "egress", "prio", "7", *ANYTHING)
    capture.release(filter_pods.client_target)
    assert filter_pods.client.qdisc_exists("eth0")
    assert not filter_pods.client.filter_exists("eth0")


def test_setting_that_was_changed_meanwhile_is_kept(pods: Pods) -> None:
    setting = f"net/ipv{pods.version}/fwmark_reflect"
    pods.client.sysctl(setting, 1)
    capture = pods.capture()
    capture.enrol(pods.client_target)
    capture.release(pods.client_target)
    assert pods.client.sysctl(setting) == "1"
    assert pods.client.sysctl("net/ipv4/tcp_fwmark_accept") == "0"


def test_routing_table_that_is_taken_is_left_alone(pods: Pods) -> None:
    route = ("192.0.2.0/24" if pods.version == 4 else "2001:db8::/32"), "via", pods.client_gateway
    pods.client.ip(f"-{pods.version}", "route", "add", *route, "table", str(constants.ROUTE_TABLE))
    pods.echo(pods.server)
    before = pods.client.state()
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(relay.flows) == 1
    capture.release(pods.client_target)
    assert pods.client.state() == before


def test_device_that_came_later_is_covered_by_enrolling_again(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    captured = capture.enrol(pods.server_target)
    near, far, length = ("10.92.0.2", "10.92.0.1", 24) if pods.version == 4 else ("fd92::2", "fd92::1", 64)
    pods.net.join(pods.server, "eth1", f"{near}/{length}", pods.client, "eth1", f"{far}/{length}")
    capture.enrol(pods.server_target)
    relay = pods.relay(captured)
    assert echoes(pods.dial(pods.client, (near, 8080)))
    assert [flow.destination for flow in relay.flows] == [(near, 8080)]


def test_request_whose_listener_died_is_not_taken_by_the_application(pods: Pods) -> None:
    """A SYN that is sent again meets the request of a dead core; it must go to the new one, not past it."""
    echo = pods.echo(pods.server)
    capture = pods.capture()
    captured = capture.enrol(pods.server_target)
    # The SYN-ACK does not arrive, so that the client keeps on sending its SYN.
    client = pods.client_at
    with pytest.raises(ConnectionRefusedError):  # the two know each other's link addresses
        pods.dial(pods.client, (pods.client_gateway, 1))
    pods.router.ip("neighbour", "replace", client, "lladdr", "02:00:00:00:00:01", "dev", "a0", "nud", "permanent")

    def begin() -> socket.socket:
        connection = socket.socket(socket.AF_INET if pods.version == 4 else socket.AF_INET6)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.connect((pods.server_at, 8080))
        return connection

    with pods.client.run(begin) as connection:
        wait_for(lambda: 8080 in pods.server.run(requests), "the request is there")
        for role in list(captured.listeners):
            os.close(captured.listeners.pop(role))
        assert sorted(capture.take_listeners(captured, {})) == list(listeners.roles_of(captured.target.addresses))
        relay = pods.relay(captured)
        pods.router.ip("neighbour", "del", client, "dev", "a0")
        connection.settimeout(10)
        wait_for(lambda: connection.connect_ex((pods.server_at, 8080)) in (0, 106), "connected")
        assert echoes(connection)
    assert len(relay.flows) == 1
    assert len(echo.peers) == 1


def requests() -> set[int]:
    """Local ports of half-open connections."""
    return {one.local[1] for one in tcp_table() if one.state == SYN_RECV}
