"""Capture as applications see it: new connections go by the core, old ones are left alone, addresses stay true."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeseal.capture import constants, listeners
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.workload import CaptureTarget
from nodeseal.linux import socket_options
from support.connection import echoes
from support.patience import wait_for
from support.pods import CLIENT, CLIENT_6, SERVER, SERVER_6, Pods
from support.sniffer import Sniffer
from support.tcp_table import ports_in_use

OUTBOUND = 0
INBOUND = 1
IPPROTO_MPTCP = 262


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pods(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pods]:
    with Pods(tmp_path, version=request.param) as made:
        yield made


def mark_of(connection: socket.socket) -> int:
    return connection.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK)


@pytest.mark.parametrize("cookies", [0, 1, 2])
def test_outbound_connection_reaches_the_listener_with_its_original_destination(pods: Pods, cookies: int) -> None:
    pods.client.sysctl("net/ipv4/tcp_syncookies", cookies)
    pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.client_target))
    connection = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(connection)
    assert [(flow.role, flow.destination) for flow in relay.flows] == [(OUTBOUND, (pods.server_at, 8080))]
    assert relay.flows[0].source == connection.getsockname()[:2]
    assert mark_of(connection) == (constants.MARK_CAPTURED if pods.backend is Choice.EBPF else 0)


@pytest.mark.parametrize("cookies", [0, 1, 2])
def test_inbound_connection_reaches_the_application_from_the_clients_address(pods: Pods, cookies: int) -> None:
    pods.server.sysctl("net/ipv4/tcp_syncookies", cookies)
    echo = pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.server_target))
    connection = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(connection)
    assert relay.flows[0].role == INBOUND
    assert relay.flows[0].source == connection.getsockname()[:2]
    assert relay.flows[0].destination == (pods.server_at, 8080)
    assert [address for address, _ in echo.sources] == [pods.client_at]


def test_both_ends_captured_by_two_nodes(pods: Pods) -> None:
    pods.echo(pods.server)
    one = pods.relay(pods.capture("node1").enrol(pods.client_target))
    other = pods.relay(pods.capture("node2").enrol(pods.server_target))
    connection = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(connection, b"x" * 1_000_000)
    assert [flow.role for flow in (*one.flows, *other.flows)] == [OUTBOUND, INBOUND]


def test_connection_from_before_enrolment_is_untouched_throughout(pods: Pods) -> None:
    pods.echo(pods.server)
    old = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(old)
    capture = pods.capture()
    relays = [pods.relay(capture.enrol(target)) for target in (pods.client_target, pods.server_target)]
    assert echoes(old)
    for target in (pods.client_target, pods.server_target):
        capture.stop_new(target)
        assert echoes(old)
        capture.release(target)
        assert echoes(old)
    assert [relay.flows for relay in relays] == [[], []]


def test_captured_connection_goes_on_after_new_ones_go_direct(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relays = [pods.relay(capture.enrol(target)) for target in (pods.client_target, pods.server_target)]
    captured = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(captured)
    for target in (pods.client_target, pods.server_target):
        capture.stop_new(target)
        assert echoes(captured)
    seen = [len(relay.flows) for relay in relays]
    direct = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(direct)
    assert echoes(captured)
    assert mark_of(direct) == 0
    assert [len(relay.flows) for relay in relays] == seen


def test_workload_that_leaves_can_be_captured_again(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))
    first = pods.dial(pods.client, (pods.server_at, 8080))
    capture.stop_new(pods.client_target)
    capture.enrol(pods.client_target)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert echoes(first)
    assert len(relay.flows) == 2


@pytest.mark.ebpf_only("iptables sets no marks on sockets")
def test_socket_that_dials_again_while_leaving_loses_its_mark(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))

    def refused_once() -> socket.socket:
        connection = socket.socket(socket.AF_INET if pods.version == 4 else socket.AF_INET6)
        connection.settimeout(5)
        connection.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, constants.MARK_CAPTURED)
        return connection

    connection = pods.client.run(refused_once)
    capture.stop_new(pods.client_target)
    with connection:
        connection.connect((pods.server_at, 8080))
        assert echoes(connection)
        assert mark_of(connection) == 0
    assert relay.flows == []


@pytest.mark.parametrize("text", ["{}", "::ffff:{}"], ids=["plain", "mapped"])
def test_ipv4_is_captured_whatever_else_the_workload_has(pods: Pods, text: str) -> None:
    echo = pods.echo(pods.server)
    capture = pods.capture()
    relays = [pods.relay(capture.enrol(target)) for target in (pods.client_target, pods.server_target)]
    assert echoes(pods.dial(pods.client, (text.format(SERVER), 8080)))
    assert [flow.destination for relay in relays for flow in relay.flows] == [(SERVER, 8080)] * 2
    assert [address for address, _ in echo.sources] == [CLIENT]


def test_multipath_tcp_is_captured(pods: Pods) -> None:
    pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.client_target))
    try:
        connection = pods.dial(pods.client, (pods.server_at, 8080), protocol=IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP in this kernel: {error}")
    assert echoes(connection)
    assert len(relay.flows) == 1


def test_client_bound_to_a_device_is_captured(pods: Pods) -> None:
    pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.client_target))
    bound = ((socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0"),)
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080), options=bound))
    assert len(relay.flows) == 1


def test_server_bound_to_a_device_is_reached(pods: Pods) -> None:
    echo = pods.echo(pods.server, device="eth0")
    relay = pods.relay(pods.capture().enrol(pods.server_target))
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert len(relay.flows) == 1
    assert echo.sources[0][0] == pods.client_at


@pytest.mark.parametrize(("device", "works"), [("eth0", True), ("eth1", False)])
def test_client_that_binds_itself_to_a_device_later_stays_captured(pods: Pods, device: str, works: bool) -> None:
    """To eth1, too, which came after enrolment: no route of it leads to the core, and then nothing may leave at all."""
    pods.echo(pods.server)
    pods.relay(pods.capture().enrol(pods.client_target))
    pods.net.join(pods.client, "eth1", "10.92.0.1/24", pods.router, "c0", "10.92.0.2/24")
    gateway = "10.92.0.2"
    if pods.version == 6:
        gateway = "fd92::2"
        pods.client.add_address("eth1", "fd92::1/64")
        pods.router.add_address("c0", f"{gateway}/64")
    pods.client.ip(f"-{pods.version}", "route", "add", "default", "via", gateway, "metric", "9999")
    connection = pods.dial(pods.client, (pods.server_at, 8080))
    assert echoes(connection)
    marks = [(pods.client.name, "10.91.1.1" if device == "eth0" else "10.92.0.2")]
    with Sniffer(pods.client.name, device, marks) as wire:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        if works:
            assert echoes(connection)
        else:
            with contextlib.suppress(OSError):
                connection.sendall(b"4111 1111 1111 1111")
        own = connection.getsockname()[1]
        assert [packet for packet in wire.cut() if own in packet.ports] == []


@pytest.mark.ebpf_only("with iptables an application's mark always gives way")
def test_application_with_a_mark_of_its_own_is_left_alone_and_counted(pods: Pods) -> None:
    pods.echo(pods.server)
    capture = pods.capture()
    relay = pods.relay(capture.enrol(pods.client_target))
    own = ((socket.SOL_SOCKET, socket_options.SO_MARK, 77),)
    connection = pods.dial(pods.client, (pods.server_at, 8080), options=own)
    assert echoes(connection)
    assert mark_of(connection) == 77
    assert relay.flows == []
    assert capture.errors()["connect_foreign_mark"] == 1


def test_connection_to_itself_is_not_captured(pods: Pods) -> None:
    pods.echo(pods.client)
    relay = pods.relay(pods.capture().enrol(pods.client_target))
    for address in ("127.0.0.1" if pods.version == 4 else "::1", pods.client_at):
        assert echoes(pods.dial(pods.client, (address, 8080)))
    assert relay.flows == []


def test_connection_to_an_address_on_lo_is_not_captured(pods: Pods) -> None:
    address, length = ("10.99.0.1", 32) if pods.version == 4 else ("fd99::1", 128)
    pods.client.add_address("lo", f"{address}/{length}")
    pods.echo(pods.client)
    relay = pods.relay(pods.capture().enrol(pods.client_target))
    assert echoes(pods.dial(pods.client, (address, 8080)))
    assert relay.flows == []


def test_udp_is_not_touched(pods: Pods) -> None:
    capture = pods.capture()
    pods.relay(capture.enrol(pods.client_target))
    pods.relay(capture.enrol(pods.server_target))

    def datagram(address: str) -> socket.socket:
        made = socket.socket(socket.AF_INET if pods.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        made.settimeout(5)
        made.bind((address, 5353))
        return made

    client, server = pods.client_at, pods.server_at
    with pods.client.run(lambda: datagram(client)) as one, pods.server.run(lambda: datagram(server)) as other:
        one.connect((server, 5353))
        one.send(b"question")
        received, source = other.recvfrom(100)
        assert (received, source[:2]) == (b"question", (client, 5353))
        assert mark_of(one) == 0


def test_mesh_port_is_not_steered(pods: Pods) -> None:
    captured = pods.capture().enrol(pods.server_target)
    relay = pods.relay(captured)
    connection = pods.dial(pods.client, (pods.server_at, constants.HBONE_PORT))
    with socket.socket(
        fileno=captured.listeners.pop(listeners.HBONE if pods.version == 4 else listeners.HBONE6)
    ) as listener:
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"tunnel")
            assert connection.recv(100) == b"tunnel"
    assert relay.flows == []


def test_closed_port_of_the_application_resets_the_client(pods: Pods) -> None:
    pods.relay(pods.capture().enrol(pods.server_target))
    connection = pods.dial(pods.client, (pods.server_at, 8081))
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(100) == b""


def test_listener_ports_cannot_be_reached_from_outside(pods: Pods) -> None:
    captured = pods.capture().enrol(pods.server_target)
    relay = pods.relay(captured)
    with socket.socket(fileno=captured.listeners.pop(INBOUND)) as listener:
        port = listener.getsockname()[1]
    connection = pods.dial(pods.client, (pods.server_at, port))
    wait_for(lambda: relay.flows, "the connection is captured like any other")
    assert relay.flows[0].destination == (pods.server_at, port)
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_client_uses_its_port_again_after_the_server_closed(pods: Pods) -> None:
    """The server's side is in TIME_WAIT then, and the SYN must still go by the core."""
    echo = pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.server_target))
    for times in (1, 2, 3):
        connection = pods.dial(pods.client, (pods.server_at, 8080), source_port=45678)
        assert echoes(connection)
        echo.hang_up()
        assert connection.recv(1) == b""
        connection.close()
        wait_for(lambda: 45678 not in pods.client.run(ports_in_use), "the client's side is closed")
        assert len(relay.flows) == times


def test_every_device_is_captured(pods: Pods) -> None:
    other = "10.92.0.2" if pods.version == 4 else "fd92::2"
    first, length = ("10.92.0.1", 24) if pods.version == 4 else ("fd92::1", 64)
    pods.net.join(pods.server, "eth1", f"{other}/{length}", pods.client, "eth1", f"{first}/{length}")
    pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.server_target))
    assert echoes(pods.dial(pods.client, (other, 8080)))
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert [flow.destination[0] for flow in relay.flows] == [other, pods.server_at]


def test_address_that_is_added_later_is_captured(pods: Pods) -> None:
    pods.echo(pods.server)
    relay = pods.relay(pods.capture().enrol(pods.server_target))
    address, length = ("10.91.2.77", 24) if pods.version == 4 else ("fd91:2::77", 64)
    pods.server.add_address("eth0", f"{address}/{length}")
    assert echoes(pods.dial(pods.client, (address, 8080)))
    assert [flow.destination for flow in relay.flows] == [(address, 8080)]


def test_forwarded_connection_is_not_steered(pods: Pods) -> None:
    """A workload that routes for others keeps routing."""
    pods.echo(pods.server)
    router = CaptureTarget(
        "default/router", pods.router.name, (ip_address("10.91.1.1" if pods.version == 4 else "fd91:1::1"),)
    )
    relay = pods.relay(pods.capture().enrol(router))
    assert echoes(pods.dial(pods.client, (pods.server_at, 8080)))
    assert relay.flows == []


def test_what_is_on_the_link_only_is_not_captured(pods: Pods) -> None:
    """Neither way: fe80::/10 means nothing without a device."""
    for namespace, device, address in ((pods.client, "eth0", "fe80::1:2"), (pods.router, "a0", "fe80::1:1")):
        namespace.add_address(device, f"{address}/64")
    echo = pods.echo(pods.router)
    relay = pods.relay(pods.capture().enrol(pods.client_target))

    def dial(device: str, address: str) -> socket.socket:
        connection = socket.socket(socket.AF_INET6)
        connection.settimeout(5)
        connection.connect((address, 8080, 0, socket.if_nametoindex(device)))
        return connection

    with pods.client.run(lambda: dial("eth0", "fe80::1:1")) as outbound:
        assert echoes(outbound)
        assert mark_of(outbound) == 0
    assert len(echo.peers) == 1
    pods.echo(pods.client)
    with pods.router.run(lambda: dial("a0", "fe80::1:2")) as inbound:
        assert echoes(inbound)
    assert relay.flows == []


@pytest.fixture
def dual(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, version=6) as made:
        yield made


@pytest.mark.parametrize("given", [4, 6])
def test_family_in_which_the_workload_has_no_address_is_captured_and_told(dual: Pods, given: int) -> None:
    pods = dual
    echo = pods.echo(pods.server)
    target = pods.client_target
    own = {address.version: address for address in target.addresses}
    capture = pods.capture()
    captured = capture.enrol(replace(target, addresses=(own[given],)))
    by_rules = pods.backend is Choice.IPTABLES
    relay = pods.relay(captured)
    for address in (SERVER, SERVER_6):
        assert echoes(pods.dial(pods.client, (address, 8080)))
    far = {4: SERVER, 6: SERVER_6}
    assert [flow.destination[0] for flow in relay.flows] == ([far[given]] if by_rules else [SERVER, SERVER_6])
    assert len(echo.peers) == 2
    other = (str(own[10 - given]),)
    found = captured.addresses
    assert (found.uncaptured, found.unattributed) == ((other, ()) if by_rules else ((), other))
    capture.close()
    (adopted,) = pods.capture().adopt()
    assert adopted.addresses == found


def test_family_that_cannot_be_captured_is_told(dual: Pods) -> None:
    pods = dual
    pods.client.sysctl("net/ipv6/conf/lo/disable_ipv6", 1)
    captured = pods.capture().enrol(replace(pods.client_target, addresses=pods.client_target.addresses[:1]))
    assert captured.addresses.uncaptured == (CLIENT_6,)


def test_what_arrives_at_an_address_that_is_not_attributed_goes_to_the_core(dual: Pods) -> None:
    pods = dual
    if pods.backend is Choice.IPTABLES:
        pytest.skip("rules capture the families in which the mesh state gives an address")
    pods.echo(pods.client)
    captured = pods.capture().enrol(replace(pods.client_target, addresses=pods.client_target.addresses[:1]))
    relay = pods.relay(captured)
    for address in (CLIENT, CLIENT_6):
        assert echoes(pods.dial(pods.server, (address, 8080)))
    assert [flow.destination[0] for flow in relay.flows] == [CLIENT, CLIENT_6]


def test_no_family_is_told_where_all_are_captured(pods: Pods) -> None:
    found = pods.capture().enrol(pods.client_target).addresses
    assert (found.uncaptured, found.unattributed, found.absent) == ((), (), ())
