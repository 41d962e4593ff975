"""Applications that do unusual things with their sockets: they work as they would without nodeseal, and nothing that
enrolled workloads say to each other is on the wire in plaintext."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeseal_lab.plan import PIPELINE_HTTP_PORT, SERVICE_ADDRESS, SERVICE_ADDRESS_6
from support.certificates import self_signed
from support.connection import Address, echoes, endpoint, family_of, receive_exactly, silent
from support.lab import RunningLab
from support.patience import wait_for
from support.programs import Programs
from support.sniffer import ports_used
from support.tcp_table import ports_in_use

pytestmark = [pytest.mark.both_backends, pytest.mark.fast]

IP_VERSIONS = (4, 6)
CARD = b"card=4111 1111 1111 1111;"
IPPROTO_MPTCP = 262
IPPROTO_SCTP = 132
IP_BIND_ADDRESS_NO_PORT = 24
TCP_FASTOPEN_CONNECT = 30
Prepare = Callable[[socket.socket], None]

# As a peer that is enrolled, and as one that is not.
CLIENTS = pytest.mark.parametrize("client", ["shipper", "guest"], ids=["mtls", "plaintext"])


def dial(
    lab: RunningLab, programs: Programs, pod: str, address: Address, prepare: Prepare, protocol: int = 0
) -> socket.socket:
    """A connection from the pod, of a socket that `prepare` has set up."""

    def make() -> socket.socket:
        made = socket.socket(family_of(address[0]), socket.SOCK_STREAM, protocol)
        made.settimeout(60)
        return made

    connection = lab.run(pod, make)
    programs.at_end(connection.close)
    lab.run(pod, lambda: prepare(connection))
    lab.run(pod, lambda: connection.connect(address))
    return connection


def option(level: int, name: int, value: int | bytes) -> Prepare:
    return lambda made: made.setsockopt(level, name, value)


# ---- where the application listens


@CLIENTS
def test_application_on_loopback_is_not_reached_from_outside(lab: RunningLab, programs: Programs, client: str) -> None:
    server = programs.serve("pipeline", host="127.0.0.1" if programs.version == 4 else "::1")
    with pytest.raises(ConnectionError):  # noqa: PT012
        connection = programs.dial(client, (programs.at("pipeline"), server.address[1]))
        receive_exactly(connection, 1)
    assert server.peers == []
    assert echoes(programs.dial("pipeline", server.address))


@CLIENTS
@pytest.mark.parametrize("where", ["wildcard", "own"])
def test_application_is_reached_where_it_listens(lab: RunningLab, programs: Programs, client: str, where: str) -> None:
    wildcard = "0.0.0.0" if programs.version == 4 else "::"
    server = programs.serve("pipeline", host=programs.at("pipeline") if where == "own" else wildcard)
    connection = programs.dial(client, (programs.at("pipeline"), server.address[1]))
    assert echoes(connection)
    assert [peer[0] for peer in server.peers] == [programs.at(client)]


@CLIENTS
def test_application_that_listens_for_both_families_is_reached_over_each(
    lab: RunningLab, programs: Programs, client: str
) -> None:
    server = programs.serve("pipeline", host="::", prepare=option(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))
    assert echoes(programs.dial(client, (programs.at("pipeline"), server.address[1])))
    mapped = "::ffff:" if programs.version == 4 else ""
    assert [peer[0] for peer in server.peers] == [mapped + programs.at(client)]


# ---- a pod and itself, and its neighbour


def test_pod_reaches_itself_by_its_service(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", port=PIPELINE_HTTP_PORT)
    service = str(SERVICE_ADDRESS if programs.version == 4 else SERVICE_ADDRESS_6)
    with programs.sniff_pod("pipeline") as wire:
        client = programs.dial("pipeline", (service, PIPELINE_HTTP_PORT))
        assert echoes(client, CARD)
        packets = wire.cut()
    assert not any(CARD in packet.payload or service in (packet.source, packet.destination) for packet in packets)
    assert PIPELINE_HTTP_PORT not in ports_used(packets)
    assert [peer[0] for peer in server.peers] == [programs.at("pipeline")]
    row = lab.outbound(client)
    assert (row["mtls"], row["peer"]) == (True, lab.identity("pipeline"))
    assert row["endpoint"] == endpoint(server.address)


def test_pods_of_one_node_are_two_rows_of_one_core(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("siem")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    out = lab.outbound(client)

    def find() -> list[dict[str, object]]:
        return [
            row
            for row in lab.connections("node1")
            if row["direction"] == "inbound" and row["destination"] == endpoint(server.address)
        ]

    (into,) = wait_for(find, "the same agent shows the other end")
    assert (out["mtls"], out["peer"]) == (True, lab.identity("siem"))
    assert (into["mtls"], into["peer"]) == (True, lab.identity("shipper"))


# ---- what an application sets before it dials


def test_source_port_of_the_applications_choice(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = dial(lab, programs, "shipper", server.address, lambda made: made.bind((programs.at("shipper"), 45454)))
    assert client.getsockname()[:2] == (programs.at("shipper"), 45454)
    assert echoes(client)
    assert [peer[0] for peer in server.peers] == [programs.at("shipper")]
    assert lab.outbound(client)["mtls"]


def test_source_address_without_a_port(lab: RunningLab, programs: Programs) -> None:
    def prepare(made: socket.socket) -> None:
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((programs.at("shipper"), 0))

    server = programs.serve("pipeline")
    client = dial(lab, programs, "shipper", server.address, prepare)
    assert echoes(client)
    assert [peer[0] for peer in server.peers] == [programs.at("shipper")]
    assert lab.outbound(client)["mtls"]


def test_source_port_again_right_after_the_server_closed(lab: RunningLab, programs: Programs) -> None:
    """The core's end of the captured connection is in TIME_WAIT then."""

    def prepare(made: socket.socket) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((programs.at("shipper"), 45455))

    server = programs.serve("pipeline", silent)
    with programs.sniff() as wire:
        for number in range(3):
            client = dial(lab, programs, "shipper", server.address, prepare)
            client.sendall(CARD)
            application = server.connection(number)
            assert receive_exactly(application, len(CARD)) == CARD
            application.close()
            assert client.recv(1) == b""
            client.close()
            wait_for(lambda: 45455 not in lab.run("shipper", ports_in_use), "the client's side has ended")
        assert not wire.carries(CARD)


def test_socket_bound_to_a_device(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    with programs.sniff() as wire:
        client = dial(
            lab, programs, "shipper", server.address, option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        )
        assert echoes(client, CARD)
        assert not wire.carries(CARD)
    assert lab.outbound(client)["mtls"]


# ---- TCP Fast Open


@pytest.fixture
def fast_open(lab: RunningLab, programs: Programs) -> None:
    """Client and server of both pods, also without a cookie in either direction (0x200, 0x4): data in every SYN."""
    for pod in ("shipper", "pipeline", "guest"):
        before = lab.sysctl(pod, "ipv4/tcp_fastopen")
        lab.sysctl(pod, "ipv4/tcp_fastopen", str(0x1 | 0x2 | 0x4 | 0x200))
        programs.at_end(lambda pod=pod, before=before: lab.sysctl(pod, "ipv4/tcp_fastopen", before))


def _fast_open_server(made: socket.socket) -> None:
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)


@CLIENTS
@pytest.mark.parametrize("way", ["sendto", "connect"])
@pytest.mark.usefixtures("fast_open")
def test_fast_open(lab: RunningLab, programs: Programs, client: str, way: str) -> None:
    server = programs.serve("pipeline", prepare=_fast_open_server)
    message = CARD * 50
    with programs.sniff() as wire:
        for _ in range(3):

            def make() -> socket.socket:
                made = socket.socket(family_of(server.address[0]))
                made.settimeout(60)
                return made

            def send(made: socket.socket) -> None:
                if way == "sendto":
                    # As many bytes as fit into the SYN are taken at once.
                    sent = made.sendto(message, socket.MSG_FASTOPEN, server.address)
                    made.sendall(message[sent:])
                else:
                    made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
                    made.connect(server.address)
                    made.sendall(message)

            connection = lab.run(client, make)
            programs.at_end(connection.close)
            lab.run(client, lambda connection=connection: send(connection))
            assert receive_exactly(connection, len(message)) == message
        packets = wire.cut()
    in_plaintext = any(CARD in packet.payload for packet in packets)
    assert in_plaintext is (client == "guest")
    if client == "shipper":
        assert ports_used(packets) <= {15008}
        assert lab.outbound(connection)["mtls"]


# ---- what an application says


@CLIENTS
def test_application_that_speaks_tls_itself(lab: RunningLab, programs: Programs, tmp_path: Path, client: str) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def handler(connection: socket.socket) -> None:
        # As SMTP does it: a greeting, a command, and from there on TLS.
        connection.sendall(b"220 ready\r\n")
        assert receive_exactly(connection, 10) == b"STARTTLS\r\n"
        connection.sendall(b"220 go ahead\r\n")
        with context.wrap_socket(connection.dup(), server_side=True) as session:
            session.sendall(session.recv(100))

    server = programs.serve("pipeline", handler)
    connection = programs.dial(client, server.address)
    assert receive_exactly(connection, 11) == b"220 ready\r\n"
    connection.sendall(b"STARTTLS\r\n")
    assert receive_exactly(connection, 14) == b"220 go ahead\r\n"
    ours = ssl.create_default_context(cafile=str(certificate))
    ours.check_hostname = False
    with ours.wrap_socket(connection, server_hostname="pipeline") as session:
        session.sendall(CARD)
        assert session.recv(100) == CARD


def in_line(connection: socket.socket) -> socket.socket:
    """The connection, which takes urgent data for data."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return connection


@CLIENTS
def test_urgent_data_arrives_in_its_place(lab: RunningLab, programs: Programs, client: str) -> None:
    """That it is urgent is not told through a tunnel, but not a byte is lost. (Natively the receiving application says
    that it wants it so.)"""
    server = programs.serve("pipeline", silent)
    connection = programs.dial(client, server.address)
    connection.sendall(b"before ")
    connection.send(b"!", socket.MSG_OOB)
    connection.sendall(b" after")
    assert receive_exactly(in_line(server.connection()), 14) == b"before ! after"


@CLIENTS
def test_urgent_data_in_bulk_stalls_nothing(lab: RunningLab, programs: Programs, client: str) -> None:
    """In bulk, so that plaintext is spliced."""
    server = programs.serve("pipeline", silent)
    connection = in_line(programs.dial(client, server.address))
    application = in_line(server.connection())
    part = bytes(range(256)) * 8192

    def send(one: socket.socket) -> None:
        for _ in range(8):
            one.sendall(part)
            one.send(b"!", socket.MSG_OOB)
        one.sendall(part)

    for one, other in ((connection, application), (application, connection)):
        sending = programs.thread(lambda one=one: send(one))
        assert receive_exactly(other, 8 * (len(part) + 1) + len(part)) == (part + b"!") * 8 + part
        sending.result()


# ---- other protocols


def test_multipath_tcp_is_captured(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", protocol=IPPROTO_MPTCP)
    with programs.sniff() as wire:
        client = dial(lab, programs, "shipper", server.address, lambda made: None, IPPROTO_MPTCP)
        assert echoes(client, CARD)
        assert not wire.carries(CARD)
    assert lab.outbound(client)["mtls"]


def test_multipath_tcp_from_outside_reaches_the_application(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline", protocol=IPPROTO_MPTCP)
    client = dial(lab, programs, "guest", server.address, lambda made: None, IPPROTO_MPTCP)
    assert echoes(client)
    assert [peer[0] for peer in server.peers] == [programs.at("guest")]


def test_udp_goes_its_own_way(lab: RunningLab, programs: Programs) -> None:
    def bound(pod: str) -> socket.socket:
        made = socket.socket(family_of(programs.at(pod)), socket.SOCK_DGRAM)
        made.settimeout(60)
        made.bind((programs.at(pod), 5353))
        return made

    with lab.run("shipper", lambda: bound("shipper")) as one, lab.run("pipeline", lambda: bound("pipeline")) as other:
        one.connect(other.getsockname())
        one.send(b"question")
        data, sender = other.recvfrom(100)
        assert (data, sender[:2]) == (b"question", (programs.at("shipper"), 5353))
