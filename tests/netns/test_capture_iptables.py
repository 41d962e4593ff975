"""What is the iptables backend's own: other people's rules, conntrack, and the choice between the two backends."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from nodeseal.capture import constants, listeners
from nodeseal.capture.backends import ruleset
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.cleanup import cleanup
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Journal
from nodeseal.capture.node import NodeCapture
from nodeseal.linux import conntrack, socket_options, xtables
from nodeseal.linux.errors import LinuxError
from nodeseal.mesh.exclusions import Excluded, PortRange
from support.connection import echoes
from support.namespaces import Namespace, iptables_rules
from support.patience import wait_for
from support.pods import CLIENT, SERVER, Pods

OUTBOUND = 0
OWN_MARK = ((socket.SOL_SOCKET, socket_options.SO_MARK, 77),)
_SO_RCVBUFFORCE = 33
_ETH_P_IP = 0x0800


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, backend=Choice.IPTABLES) as made:
        yield made


def captured_connections() -> set[tuple[conntrack.Endpoint, conntrack.Endpoint]]:
    return conntrack.marked_connections(constants.MARK_CAPTURED)


class Wire:
    """All IPv4 that crosses the link between the client and the router."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods
        self._socket = pods.router.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        self._socket.settimeout(10)
        self._socket.bind(("a0", _ETH_P_IP))
        pods.at_end(self._socket.close)

    def carries(self, marker: bytes) -> bool:
        """Whether a packet with the marker has come by."""
        return any(marker in packet for packet in self.packets())

    def packets(self) -> list[bytes]:
        """What has come by since the last look. A datagram to the router is behind everything that did."""
        with self._pods.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"so far", ("10.91.1.1", 9))
        packets = []
        while True:
            packets.append(self._socket.recv(1 << 16))
            if packets[-1].endswith(b"so far"):
                return packets


def iptables(namespace: Namespace, program: str, *arguments: str) -> None:
    with namespace.popen(program, *arguments) as process:
        assert process.wait(20) == 0


# ---- other people's rules


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_flavour_that_is_used_is_used(pods: Pods, program: str) -> None:
    """And everything works over it, and the rules that were there are there afterwards, alone."""
    pods.echo(pods.server)
    for pod in (pods.client, pods.server):
        iptables(pod, program, "-A", "INPUT", "-p", "udp", "-j", "ACCEPT")
        iptables(pod, program, "-t", "mangle", "-A", "OUTPUT", "-p", "udp", "-j", "MARK", "--set-mark", "7")
    before = [pod.state() for pod in (pods.client, pods.server)]
    capture = pods.capture()
    relays = [pods.relay(capture.enrol(target)) for target in (pods.client_target, pods.server_target)]
    ours = [rule for rule in pods.client.run(iptables_rules) if "NODESEAL" in rule]
    assert ours
    assert all(rule.startswith(f"{program}: ") for rule in ours)
    assert echoes(pods.dial(pods.client, (SERVER, 8080)), b"x" * 1_000_000)
    assert [len(relay.flows) for relay in relays] == [1, 1]
    assert echoes(pods.dial(pods.client, (SERVER, 8080), options=OWN_MARK))
    assert capture.errors()["connect_mark_replaced"] == 1
    assert [len(relay.flows) for relay in relays] == [2, 2]
    for target in (pods.client_target, pods.server_target):
        capture.release(target)
    assert [pod.state() for pod in (pods.client, pods.server)] == before


def test_jump_becomes_first_again(pods: Pods) -> None:
    capture = pods.capture()
    capture.enrol(pods.client_target)
    iptables(pods.client, "iptables", "-t", "mangle", "-I", "OUTPUT", "1", "-p", "tcp", "-j", "ACCEPT")
    capture.enrol(pods.client_target)
    found = [rule for rule in pods.client.run(iptables_rules) if " -A OUTPUT " in rule]
    assert found == ["iptables-nft: -A OUTPUT -p tcp -j NODESEAL_OUTPUT", "iptables-nft: -A OUTPUT -p tcp -j ACCEPT"]


@pytest.mark.parametrize("again", ["enrol", "take_listeners"])
def test_rules_that_somebody_deleted_come_back(pods: Pods, again: str) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    captured = capture.enrol(pods.client_target)
    relay = pods.relay(captured)
    iptables(pods.client, "iptables", "-t", "mangle", "-F")
    iptables(pods.client, "iptables", "-t", "mangle", "-X")
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert relay.flows == []
    if again == "enrol":
        capture.enrol(pods.client_target)
    else:
        capture.take_listeners(captured, {})
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert len(relay.flows) == 1


def test_enrol_undoes_everything_when_the_rules_are_refused(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pods.client.state()
    capture = pods.capture()
    original = xtables.restore

    def done_and_failed(program: str, text: str) -> None:
        original(program, text)
        monkeypatch.undo()
        raise CaptureError("no more")

    monkeypatch.setattr(xtables, "restore", done_and_failed)
    with pytest.raises(CaptureError, match="no more"):
        capture.enrol(pods.client_target)
    assert pods.client.state() == before
    assert Journal.load(pods.run_dir()).entries == {}


def test_nothing_of_ebpf_is_used(pods: Pods) -> None:
    capture = pods.capture()
    capture.enrol(pods.client_target)
    assert capture.backend == "iptables"
    assert not (pods.run_dir() / "bpf").exists()
    assert Journal.load(pods.run_dir()).entries["default/client"].backend == "iptables"


# ---- applications that set marks


@pytest.mark.parametrize("mark", [77, 0])
def test_mark_that_is_set_later_does_not_take_a_connection_off_its_way(pods: Pods, mark: int) -> None:
    """Neither on the socket that dials nor on the one that is accepted."""
    echo = pods.echo(pods.server)
    capture = pods.capture()
    for target in (pods.client_target, pods.server_target):
        pods.relay(capture.enrol(target))
    connection = pods.dial(pods.client, (SERVER, 8080))
    assert echoes(connection)
    wire = Wire(pods)
    connection.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, mark)
    (accepted,) = echo.accepted
    with contextlib.suppress(PermissionError):  # of a node on this machine that captures by eBPF: bpf/keep_mark.c
        accepted.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, mark)
    assert echoes(connection, b"card=4111" * 1000)
    source = connection.getsockname()[1].to_bytes(2, "big")
    assert not any(source in (packet[20:22], packet[22:24]) for packet in wire.packets())


# ---- connections older than enrolment


def test_old_connection_that_ends_first_ends_on_the_other_side(pods: Pods) -> None:
    """A FIN is the first that conntrack sees of it, and INVALID."""
    pods.echo(pods.server)
    old = pods.dial(pods.client, (SERVER, 8080))
    assert echoes(old)
    capture = pods.capture()
    for target in (pods.client_target, pods.server_target):
        capture.enrol(target)
    old.shutdown(socket.SHUT_WR)
    assert old.recv(1) == b""


def test_old_connection_goes_on_where_conntrack_was_strict(pods: Pods) -> None:
    pods.echo(pods.server)
    for pod in (pods.client, pods.server):
        pod.sysctl("net/netfilter/nf_conntrack_tcp_loose", 0)
    old = pods.dial(pods.client, (SERVER, 8080))
    capture = pods.capture()
    for target in (pods.client_target, pods.server_target):
        capture.enrol(target)
    assert echoes(old)
    for target in (pods.client_target, pods.server_target):
        capture.release(target)
    assert echoes(old)
    assert pods.client.sysctl("net/netfilter/nf_conntrack_tcp_loose") == "0"


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "talking"])
def test_syn_that_strays_into_an_old_connection_does_not_cut_it(pods: Pods, silent: bool) -> None:
    echo = pods.echo(pods.server)
    old = pods.dial(pods.client, (SERVER, 8080))
    assert echoes(old)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.server_target))
    if not silent:
        assert echoes(old)
    send_syn(pods.client, old.getsockname(), (SERVER, 8080))
    for _ in range(3):
        assert echoes(old)
    assert relay.flows == []
    assert len(echo.peers) == 1


def send_syn(namespace: Namespace, source: tuple[str, int], destination: tuple[str, int]) -> None:
    """One SYN, from a raw socket, with a sequence number of its own."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    segment = struct.pack("!HHIIBBHHH", source[1], destination[1], 12345, 0, 5 << 4, 0x02, 65535, 0, 0)
    words = struct.unpack("!16H", addresses + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment)
    total = sum(words)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    segment = segment[:16] + struct.pack("!H", checksum) + segment[18:]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.sendto(segment, (destination[0], 0))

    namespace.run(send)


# ---- conntrack


def entries(namespace: Namespace) -> str:
    return namespace.run(lambda: Path("/proc/thread-self/net/nf_conntrack").read_text())


def forget_everything(namespace: Namespace) -> None:
    """As conntrack -F does."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    def flush() -> None:
        with NFCTSocket() as table:
            table.flush()

    namespace.run(flush)


def test_entry_that_was_deleted_is_marked_again_by_what_the_core_sends(pods: Pods) -> None:
    pods.echo(pods.server)
    captured = pods.capture().enrol(pods.client_target)
    with socket.socket(fileno=captured.listeners.pop(OUTBOUND)) as listener:
        listener.settimeout(5)
        connection = pods.dial(pods.client, (SERVER, 8080))
        accepted, _ = listener.accept()
        with accepted:
            wire = Wire(pods)
            forget_everything(pods.client)
            assert pods.client.run(captured_connections) == set()
            accepted.sendall(b"first")
            assert connection.recv(5) == b"first"
            connection.sendall(b"second")
            assert accepted.recv(6) == b"second"
            assert len(pods.client.run(captured_connections)) == 1
            assert not wire.carries(b"second")


@pytest.mark.parametrize("version", [4, 6])
def test_captured_connections_are_listed_in_both_families(tmp_path: Path, version: int) -> None:
    with Pods(tmp_path, backend=Choice.IPTABLES, version=version) as pods:
        pods.echo(pods.server)
        pods.relay(pods.capture().enrol(pods.client_target))
        connection = pods.dial(pods.client, (pods.server_at, 8080))
        assert echoes(connection)
        listed = pods.client.run(captured_connections)
        ends = (connection.getsockname()[:2], connection.getpeername()[:2])
        assert {tuple((str(address), port) for address, port in one) for one in listed} == {ends}


def test_application_that_accepted_answers_the_core_when_its_entry_is_gone(pods: Pods) -> None:
    """By the mark on its socket (tcp_fwmark_accept)."""
    echo = pods.echo(pods.server)
    pods.relay(pods.capture().enrol(pods.server_target))
    connection = pods.dial(pods.client, (SERVER, 8080))
    assert echoes(connection)
    forget_everything(pods.server)
    echo.accepted[0].sendall(b"more")
    assert connection.recv(4) == b"more"


def test_captured_connections_are_kept_alive_in_conntrack(pods: Pods) -> None:
    """Oftener than conntrack forgets one in any state in which its application can still send."""
    captured = pods.capture().enrol(pods.client_target)
    with socket.socket(fileno=captured.listeners.pop(OUTBOUND)) as listener:
        listener.settimeout(5)
        pods.dial(pods.client, (SERVER, 8080))
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert idle == accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == listeners.TRACKED_SECONDS
    for state in ("established", "close_wait", "fin_wait", "unacknowledged", "max_retrans"):
        assert int(pods.client.sysctl(f"net/netfilter/nf_conntrack_tcp_timeout_{state}")) > 2 * idle


def test_application_that_did_not_notice_the_end_of_the_core_is_reset_and_sends_nothing(pods: Pods) -> None:
    pods.echo(pods.server)
    captured = pods.capture().enrol(pods.client_target)
    with socket.socket(fileno=captured.listeners.pop(OUTBOUND)) as listener:
        listener.settimeout(5)
        connection = pods.dial(pods.client, (SERVER, 8080))
        listener.accept()[0].close()
    wait_for(lambda: "CLOSE_WAIT" in entries(pods.client), "the kernel has closed for the core")
    (line,) = [line for line in entries(pods.client).splitlines() if "CLOSE_WAIT" in line]
    assert int(line.split()[4]) > 20 * 24 * 3600
    wire = Wire(pods)
    with pytest.raises(OSError):  # noqa: PT011, PT012
        while True:
            connection.sendall(b"card=4111")
    assert not wire.carries(b"card=4111")


def test_wire_shows_what_is_not_captured(pods: Pods) -> None:
    """What the tests above would see."""
    pods.echo(pods.server)
    wire = Wire(pods)
    assert echoes(pods.dial(pods.client, (SERVER, 8080)), b"card=4111")
    assert wire.carries(b"card=4111")


def test_port_of_a_new_listener_is_written_into_the_rules(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    capture.enrol(pods.client_target)
    before = pods.client.run(lambda: ruleset.ports(xtables.save("iptables-nft")))
    capture.close()
    again = pods.capture()
    (adopted,) = again.adopt()
    assert again.live_listeners(adopted) == frozenset()
    with pytest.raises(TimeoutError):
        pods.dial(pods.client, (SERVER, 8080), timeout=0.5)
    again.take_listeners(adopted, {})
    assert pods.client.run(lambda: ruleset.ports(xtables.save("iptables-nft"))).keys() == before.keys()
    assert again.live_listeners(adopted) == {0, 1}
    relay = pods.relay(adopted)
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert len(relay.flows) == 1


def test_no_socket_of_the_application_gets_what_is_captured(pods: Pods) -> None:
    """Not even one that has taken the port of a listener that is gone."""
    capture = pods.capture()
    capture.enrol(pods.client_target)
    ports = pods.client.run(lambda: ruleset.ports(xtables.save("iptables-nft")))
    capture.close()
    own = [pods.echo(pods.client, port) for port in ports.values()]
    for namespace, destination in ((pods.client, (SERVER, 8080)), (pods.router, (CLIENT, 8080))):
        with pytest.raises(TimeoutError):
            pods.dial(namespace, destination, timeout=0.5)
    assert [echo.peers for echo in own] == [[], []]


# ---- which backend


def cannot(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """This machine cannot use the backend."""

    def refuse(*_: object) -> None:
        raise CaptureError(f"no {what} here")

    monkeypatch.setattr(
        {
            "ebpf": "nodeseal.capture.backends.pod_ebpf.PodEbpfBackend.prepare",
            "iptables": "nodeseal.capture.backends.iptables.IptablesBackend.prepare",
        }[what],
        refuse,
    )


# ---- what passes by the core

PORT_8080 = Excluded(ports=(PortRange(8080, 8081),))
FROM_CLIENT = Excluded(networks=(ip_network(f"{CLIENT}/32"), ip_network("fd00::/8")))


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize("bypass", [PORT_8080, FROM_CLIENT], ids=["port", "range"])
def test_what_is_to_bypass_the_core_is_not_captured(pods: Pods, program: str, bypass: Excluded) -> None:
    iptables(pods.server, program, "-t", "mangle", "-A", "INPUT", "-p", "udp", "-j", "ACCEPT")
    echo = pods.echo(pods.server)
    capture = pods.capture()
    capture.set_bypass({pods.server_target.name: bypass})
    relay = pods.relay(capture.enrol(pods.server_target))
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert relay.flows == []
    assert [peer[0] for peer in echo.sources] == [CLIENT]


def test_what_passes_changes_for_new_connections_only(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.server_target))
    captured = pods.dial(pods.client, (SERVER, 8080))
    assert echoes(captured)
    capture.set_bypass({pods.server_target.name: PORT_8080})
    direct = pods.dial(pods.client, (SERVER, 8080))
    assert echoes(direct)
    assert len(relay.flows) == 1
    capture.set_bypass({})
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert len(relay.flows) == 2
    assert echoes(captured)
    assert echoes(direct)


def test_what_passes_does_so_with_syn_cookies(pods: Pods) -> None:
    pods.server.sysctl("net/ipv4/tcp_syncookies", 2)
    pods.echo(pods.server)
    capture = pods.capture()
    capture.set_bypass({pods.server_target.name: PORT_8080})
    relay = pods.relay(capture.enrol(pods.server_target))
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert relay.flows == []


def test_what_passes_stays_so_while_the_next_agent_begins(pods: Pods) -> None:
    pods.echo(pods.server)
    first = pods.capture()
    first.set_bypass({pods.server_target.name: PORT_8080})
    first.enrol(pods.server_target)
    first.close()
    second = pods.capture()
    (captured,) = second.adopt()
    second.take_listeners(captured, {})
    relay = pods.relay(captured)
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert relay.flows == []
    second.set_bypass({})
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert len(relay.flows) == 1


def test_auto_is_ebpf_where_it_works(pods: Pods) -> None:
    pods.backend = Choice.AUTO
    capture = pods.capture()
    assert (capture.backend, capture.why) == ("ebpf", "")


def test_auto_is_iptables_where_ebpf_does_not_work(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cannot(monkeypatch, "ebpf")
    pods.backend = Choice.AUTO
    capture = pods.capture()
    assert (capture.backend, capture.why) == ("iptables", "no ebpf here")
    assert "capture is by iptables, not by eBPF: no ebpf here" in caplog.text
    pods.echo(pods.server)
    relay = pods.relay(capture.enrol(pods.client_target))
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert len(relay.flows) == 1


@pytest.mark.parametrize("wanted", ["ebpf", "iptables"])
def test_backend_that_was_asked_for_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    cannot(monkeypatch, wanted)
    with pytest.raises(CaptureError, match=rf"^no {wanted} here$"):
        NodeCapture(tmp_path / "run", choice=Choice(wanted)).prepare()
    assert not (tmp_path / "run").exists()


def test_neither_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cannot(monkeypatch, "ebpf")
    cannot(monkeypatch, "iptables")
    with pytest.raises(CaptureError, match=r"can be used here: ebpf: no ebpf here; iptables: no iptables here$"):
        NodeCapture(tmp_path / "run").prepare()
    assert not (tmp_path / "run").exists()


def test_iptables_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtables, "_find", lambda command: None)
    with pytest.raises(LinuxError, match=r"^iptables-restore is not installed: apt-get install iptables"):
        NodeCapture(tmp_path / "run", choice=Choice.IPTABLES).prepare()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("first", "second"), [("ebpf", "iptables"), ("iptables", "ebpf")])
def test_workload_keeps_its_backend_until_it_leaves(pods: Pods, first: str, second: str) -> None:
    pods.echo(pods.server)
    before = pods.client.state(), pods.server.state()
    pods.backend = Choice(first)
    one = pods.capture()
    relay = pods.relay(one.enrol(pods.client_target))
    old = pods.dial(pods.client, (SERVER, 8080))
    one.close()

    pods.backend = Choice(second)
    other = pods.capture()
    (adopted,) = other.adopt()
    assert adopted.backend == first
    held = {role: relay.fileno(role) for role in (0, 1)}
    assert other.take_listeners(adopted, held) == [2]
    assert other.enrol(pods.client_target).backend == first
    assert other.enrol(pods.server_target).backend == second
    assert echoes(old)
    pods.relay(other.captured["default/server"])
    assert echoes(pods.dial(pods.client, (SERVER, 8080)))
    assert len(relay.flows) == 2
    other.stop_new(pods.client_target)
    assert echoes(old)
    other.release(pods.client_target)
    assert other.enrol(pods.client_target).backend == second
    other.close()
    assert cleanup(pods.run_dir()).failed == []
    assert (pods.client.state(), pods.server.state()) == before
    assert list(pods.run_dir().iterdir()) == []


def test_cleanup_undoes_what_both_backends_made(pods: Pods) -> None:
    before = pods.client.state(), pods.server.state()
    for choice, target in ((Choice.EBPF, pods.client_target), (Choice.IPTABLES, pods.server_target)):
        pods.backend = choice
        capture = pods.capture()
        capture.enrol(target)
        capture.close()
    assert pods.client.rule_exists(constants.MARK_CAPTURED)
    assert pods.server.rule_exists(constants.MARK_CAPTURED)
    assert cleanup(pods.run_dir()).failed == []
    assert (pods.client.state(), pods.server.state()) == before
    assert list(pods.run_dir().iterdir()) == []


def test_backend_of_what_is_captured_cannot_be_used_any_more(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = pods.capture()
    capture.enrol(pods.client_target)
    capture.close()
    cannot(monkeypatch, "iptables")
    with pytest.raises(
        CaptureError,
        match=r"^default/client: captured by iptables before, which cannot be used any more \(no iptables here\); ",
    ):
        NodeCapture(pods.run_dir(), choice=Choice.EBPF).prepare()
    assert not (pods.run_dir() / "bpf").exists()
