"""What passes by the core: excluded connections, those of the node itself, and never what only one of two enrolled
workloads excludes."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.bypass import Entries, extent_entries, inside_entries, node_entries, peer_entries
from nodeseal.linux import socket_options
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.extent import Extent
from support.connection import echoes
from support.patience import wait_for
from support.pods import Pods
from support.tcp_table import ports_in_use

pytestmark = pytest.mark.ebpf_only("with iptables nothing passes by the core")

PORT_8080 = Excluded(ports=(PortRange(8080, 8080),))
_TCP_MD5SIG = 14
OWN_MARK = ((socket.SOL_SOCKET, socket_options.SO_MARK, 77),)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, version=request.param) as pods:
        yield pods


def only(text: str) -> Excluded:
    """Connections with this address."""
    return Excluded(networks=(ip_network(text),))


def client_with(pods: Pods, outbound: Excluded) -> Entries:
    return peer_entries([ip_address(pods.client_at)], Exclusions(outbound=outbound))


def server_with(pods: Pods, inbound: Excluded) -> Entries:
    return peer_entries([ip_address(pods.server_at)], Exclusions(inbound=inbound))


def enrolled(address: str) -> Entries:
    return peer_entries([ip_address(address)], NO_EXCLUSIONS)


def gateway(pods: Pods) -> str:
    """The router's address on the server's side."""
    return "10.91.2.1" if pods.version == 4 else "fd91:2::1"


class Dialling:
    """The client is captured; `captured` says whether what it dials goes to the core."""

    def __init__(self, pods: Pods, entries: Entries) -> None:
        pods.echo(pods.server)
        self.capture = pods.capture()
        self.capture.bypass().replace(entries)
        self.relay = pods.relay(self.capture.enrol(pods.client_target))
        self._pods = pods

    def captured(self, port: int = 8080, **options: object) -> bool:
        before = len(self.relay.flows)
        assert echoes(self._pods.dial(self._pods.client, (self._pods.server_at, port), **options))  # type: ignore[arg-type]
        return len(self.relay.flows) > before


@pytest.mark.parametrize("kind", ["port", "range"])
def test_outbound_exclusion_passes_by_the_core(pods: Pods, kind: str) -> None:
    outbound = PORT_8080 if kind == "port" else only(pods.server_at)
    dialling = Dialling(pods, client_with(pods, outbound))
    assert not dialling.captured()
    assert dialling.capture.errors()["connect_excluded"] == 1


def test_other_ports_and_addresses_are_captured(pods: Pods) -> None:
    pods.echo(pods.server, 8081)
    dialling = Dialling(
        pods,
        client_with(
            pods, Excluded((PortRange(8081, 8090),), (ip_network("10.91.2.4/30"), ip_network("fd91:2::4/126")))
        ),
    )
    assert dialling.captured()
    assert not dialling.captured(8081)


def test_outbound_exclusion_alone_does_not_reach_an_enrolled_workload_in_plaintext(pods: Pods) -> None:
    assert Dialling(pods, client_with(pods, PORT_8080) | enrolled(pods.server_at)).captured()


def test_exclusion_of_both_sides_passes_by_the_core(pods: Pods) -> None:
    assert not Dialling(pods, client_with(pods, only(pods.server_at)) | server_with(pods, PORT_8080)).captured()


def test_exclusion_changes_for_new_connections_only(pods: Pods) -> None:
    dialling = Dialling(pods, {})
    captured = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(captured)
    bypass = dialling.capture.bypass()
    bypass.replace(client_with(pods, PORT_8080))
    direct = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(direct)
    assert len(dialling.relay.flows) == 1
    bypass.replace({})
    assert dialling.captured()
    assert echoes(captured)
    assert echoes(direct)


def test_signed_connection_goes_through_where_it_is_excluded(tmp_path: Path) -> None:
    """As BGP has them (RFC 2385): no proxy knows the key."""

    def signed(made: socket.socket, peer: str) -> socket.socket:
        # struct tcp_md5sig, linux/tcp.h
        address = struct.pack("=HH4s120x", socket.AF_INET, 0, socket.inet_aton(peer))
        made.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, address + struct.pack("=BBHI80s", 0, 0, 6, 0, b"secret"))
        return made

    def listen() -> socket.socket:
        listener = signed(socket.socket(), pods.client_at)
        listener.bind((pods.server_at, 179))
        listener.listen()
        return listener

    def dial(seconds: float) -> None:
        with signed(socket.socket(), pods.server_at) as connection:
            connection.settimeout(seconds)
            connection.connect((pods.server_at, 179))

    with Pods(tmp_path) as pods, pods.server.run(listen):
        capture = pods.capture()
        pods.relay(capture.enrol(pods.client_target))
        with pytest.raises(TimeoutError):
            pods.client.run(lambda: dial(0.5))
        capture.bypass().replace(client_with(pods, Excluded(ports=(PortRange(179, 179),))))
        pods.client.run(lambda: dial(60))


def test_socket_that_was_captured_in_vain_dials_an_excluded_port_directly(pods: Pods) -> None:
    dialling = Dialling(pods, client_with(pods, PORT_8080))
    earlier = ((socket.SOL_SOCKET, socket_options.SO_MARK, constants.MARK_CAPTURED),)
    assert not dialling.captured(options=earlier)


def test_mark_of_the_application_gives_way_towards_an_enrolled_workload(pods: Pods) -> None:
    dialling = Dialling(pods, enrolled(pods.server_at))
    assert dialling.captured(options=OWN_MARK)
    assert dialling.capture.errors()["connect_mark_replaced"] == 1


def test_mark_of_the_application_is_no_exclusion(pods: Pods) -> None:
    assert Dialling(pods, server_with(pods, PORT_8080)).captured(options=OWN_MARK)


def test_mark_of_the_application_stays_where_it_excludes_as_well(pods: Pods) -> None:
    assert not Dialling(pods, client_with(pods, PORT_8080) | server_with(pods, PORT_8080)).captured(options=OWN_MARK)


def test_what_passes_by_is_the_same_for_the_next_agent(pods: Pods) -> None:
    dialling = Dialling(pods, client_with(pods, PORT_8080))
    dialling.capture.close()
    pods.capture()
    assert not dialling.captured()


# ---- outside the mesh


def extent() -> Extent:
    """The mesh is where the client is, and the server is not."""
    return Extent((ip_network("10.91.1.0/24"), ip_network("fd91:1::/64")))


def test_what_is_outside_the_mesh_is_reached_when_nobody_runs(pods: Pods) -> None:
    dialling = Dialling(pods, extent_entries(extent()))
    assert not dialling.captured()
    dialling.relay.close()
    dialling.capture.close()
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))


def test_what_is_inside_the_mesh_stays_closed_when_nobody_runs(pods: Pods) -> None:
    inside = Extent((ip_network("10.91.0.0/16"), ip_network("fd91::/16")))
    dialling = Dialling(pods, extent_entries(inside))
    assert dialling.captured()
    dialling.relay.close()
    dialling.capture.close()
    with pytest.raises(OSError, match=r"timed out|refused"):
        pods.dial(pods.client, (pods.server_at, 8080), timeout=0.5)


def test_enrolled_workload_is_captured_wherever_it_is(pods: Pods) -> None:
    """One that enters the mesh state later: what is open goes on, what is new is captured."""
    dialling = Dialling(pods, extent_entries(extent()))
    direct = pods.dial(pods.client, (pods.server_at, 8080))
    dialling.capture.bypass().change(enrolled(pods.server_at), ())
    assert dialling.captured()
    assert echoes(direct)


def test_address_that_is_named_is_outside(pods: Pods) -> None:
    everywhere = Extent((ip_network("10.91.0.0/16"), ip_network("fd91::/16")), (ip_network(pods.server_at),))
    dialling = Dialling(pods, extent_entries(everywhere))
    assert not dialling.captured()
    assert dialling.capture.errors()["connect_outside"] == 1


def test_address_of_the_mesh_state_is_not_outside(pods: Pods) -> None:
    entries = extent_entries(extent()) | inside_entries([ip_address(pods.server_at)], extent())
    assert Dialling(pods, entries).captured()


def test_mark_of_the_application_stays_towards_the_outside(pods: Pods) -> None:
    dialling = Dialling(pods, extent_entries(extent()))
    connection = pods.dial(pods.client, (pods.server_at, 8080), options=OWN_MARK)
    assert connection.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == 77
    assert not dialling.captured(options=((socket.SOL_SOCKET, socket_options.SO_MARK, constants.MARK_CAPTURED),))


# ---- inbound


@pytest.mark.parametrize("kind", ["port", "range"])
def test_inbound_exclusion_passes_by_the_core(pods: Pods, kind: str) -> None:
    inbound = PORT_8080 if kind == "port" else only(pods.client_at)
    echo = pods.echo(pods.server)
    capture = pods.capture()
    capture.bypass().replace(server_with(pods, inbound))
    relay = pods.relay(capture.enrol(pods.server_target))
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert relay.flows == []
    assert [peer[0] for peer in echo.sources] == [pods.client_at]
    assert capture.errors()["steer_excluded"] == 1


def test_client_of_an_excluded_port_uses_its_own_port_again(pods: Pods) -> None:
    """The server's side is in TIME_WAIT: the SYN is not to be taken for one of a captured connection."""
    echo = pods.echo(pods.server)
    capture = pods.capture()
    capture.bypass().replace(server_with(pods, PORT_8080))
    relay = pods.relay(capture.enrol(pods.server_target))
    for _ in range(3):
        connection = pods.dial(pods.client, (pods.server_at, 8080), source_port=45679)
        assert echoes(connection)
        echo.hang_up()
        assert connection.recv(1) == b""
        connection.close()
        wait_for(lambda: 45679 not in pods.client.run(ports_in_use), "the client's side is closed")
    assert relay.flows == []


class Node:
    """The router is the server's node: the server is captured, and its node's addresses are known."""

    def __init__(self, pods: Pods, entries: Entries) -> None:
        self.echo = pods.echo(pods.server)
        self.capture = pods.capture()
        self.capture.bypass().replace(entries)
        self.relay = pods.relay(self.capture.enrol(pods.server_target))


def local(pods: Pods) -> Entries:
    return node_entries([ip_address(gateway(pods))], [])


def test_node_reaches_the_application_directly(pods: Pods) -> None:
    node = Node(pods, local(pods))
    assert echoes(pods.dial(pods.router, (pods.server_at, 8080)))
    assert node.relay.flows == []
    assert [peer[0] for peer in node.echo.sources] == [gateway(pods)]
    assert node.capture.errors()["steer_from_node"] == 1


def test_node_reaches_the_application_past_a_tc_filter(tmp_path: Path) -> None:
    """Where the kernel has no TCX."""
    with Pods(tmp_path, tcx=False) as pods:
        node = Node(pods, local(pods))
        assert echoes(pods.dial(pods.router, (pods.server_at, 8080)))
        assert node.relay.flows == []
        assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
        assert len(node.relay.flows) == 1


def test_node_reaches_the_application_when_nobody_holds_the_listeners(pods: Pods) -> None:
    node = Node(pods, local(pods))
    node.relay.close()
    node.capture.close()
    assert echoes(pods.dial(pods.router, (pods.server_at, 8080)))
    with pytest.raises(TimeoutError):
        pods.dial(pods.client, (pods.server_at, 8080), timeout=0.5)


def test_node_reaches_the_application_with_syn_cookies(pods: Pods) -> None:
    pods.server.sysctl("net/ipv4/tcp_syncookies", 2)
    node = Node(pods, local(pods))
    for _ in range(3):
        assert echoes(pods.dial(pods.router, (pods.server_at, 8080)))
    assert node.relay.flows == []


def test_others_are_captured_as_before(pods: Pods) -> None:
    node = Node(pods, local(pods))
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(node.relay.flows) == 1


def masquerade(pods: Pods) -> None:
    """What the router forwards to the server has the router's address, as kube-proxy does it for NodePorts."""
    family = "ip" if pods.version == 4 else "ip6"
    chain = "type nat hook postrouting priority 100;\n oifname b0 masquerade\n"
    rules = f"table {family} t {{\n chain c {{\n {chain} }}\n}}\n"
    subprocess.run(["ip", "netns", "exec", pods.router.name, "nft", "-f", "-"], input=rules, text=True, check=True)


def test_what_the_node_forwards_under_its_own_address_is_captured(pods: Pods) -> None:
    """A remote client behind masquerading has the node's address and no more."""
    node = Node(pods, local(pods))
    masquerade(pods)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert [flow.source[0] for flow in node.relay.flows] == [gateway(pods)]


def test_machine_that_claims_the_nodes_address_is_not_let_in(pods: Pods) -> None:
    node = Node(pods, local(pods))
    address = gateway(pods)
    length, flags = ("32", ()) if pods.version == 4 else ("128", ("nodad",))
    pods.client.ip("address", "add", f"{address}/{length}", "dev", "eth0", *flags)

    def dial() -> None:
        family = socket.AF_INET if pods.version == 4 else socket.AF_INET6
        with socket.socket(family) as connection:
            connection.settimeout(0.5)
            connection.bind((address, 0))
            connection.connect((pods.server_at, 8080))

    with pytest.raises(TimeoutError):
        pods.client.run(dial)
    assert node.echo.peers == []
    assert node.capture.errors()["steer_from_node"] == 0


def test_enrolled_workload_at_an_address_of_the_node_is_captured(pods: Pods) -> None:
    node = Node(pods, local(pods) | enrolled(gateway(pods)))
    assert echoes(pods.dial(pods.router, (pods.server_at, 8080)))
    assert len(node.relay.flows) == 1


def test_node_that_has_enrolled_processes_still_reaches_the_application(pods: Pods) -> None:
    """What they dial is marked and goes to the core; what comes directly is another process's. What the node forwards
    under its address could be anybody's."""
    shared = peer_entries([ip_address(gateway(pods))], NO_EXCLUSIONS, shared=True)
    node = Node(pods, local(pods) | shared)
    assert echoes(pods.dial(pods.router, (pods.server_at, 8080)))
    assert node.relay.flows == []
    masquerade(pods)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert [flow.source[0] for flow in node.relay.flows] == [gateway(pods)]


def test_address_that_the_operator_names_passes_from_anywhere(pods: Pods) -> None:
    node = Node(pods, node_entries([], [ip_network("10.91.1.0/24"), ip_network("fd91:1::/64")]))
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert node.relay.flows == []


# ---- a captured connection stays one


def test_application_cannot_take_what_it_dialled_off_the_core(pods: Pods) -> None:
    dialling = Dialling(pods, {})
    connection = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(connection)
    for mark in (77, 0, constants.MARK_CORE):
        with pytest.raises(PermissionError):
            connection.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, mark)
    assert echoes(connection)
    assert dialling.capture.errors()["mark_kept"] == 3


def test_application_cannot_take_what_it_accepted_off_the_core(pods: Pods) -> None:
    echo = pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.server_target))
    connection = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(connection)
    (accepted,) = echo.accepted
    with pytest.raises(PermissionError):
        accepted.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, 77)
    assert echoes(connection)
    assert len(relay.flows) == 1


def test_other_options_and_other_sockets_are_not_concerned(pods: Pods) -> None:
    Dialling(pods, {})
    connection = pods.dial(pods.client, (pods.server_at, 8080))
    name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    # More than a page: the kernel hands a BPF program the beginning only.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name + bytes(8192))
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16) == name
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def mark() -> int:
        with socket.socket() as fresh:
            for value in (77, 78):
                fresh.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, value)
            return fresh.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK)

    assert pods.client.run(mark) == 78
