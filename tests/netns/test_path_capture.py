"""New connections of enrolled workloads: where they go, what can be read on the wire, and what the agents say."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeseal_lab.plan import PIPELINE_HTTP_PORT, SERVICE_ADDRESS, SERVICE_ADDRESS_6
from support.connection import Address, echoes, endpoint, receive_exactly, reset, silent
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs
from support.server import Server
from support.sniffer import ports_used
from support.tcp_table import ESTABLISHED, TIME_WAIT, tcp_table

pytestmark = pytest.mark.fast

IP_VERSIONS = (4, 6)

CARD = b"card=4111 1111 1111 1111;"

BETWEEN_NODES = pytest.mark.parametrize(
    ("source", "target"),
    [("shipper", "pipeline"), ("pipeline", "siem")],
    ids=["node1-to-node2", "node2-to-node1"],
)


@pytest.mark.both_backends
@BETWEEN_NODES
def test_enrolled_pair_crosses_the_wire_in_tls_only(
    lab: RunningLab, programs: Programs, source: str, target: str
) -> None:
    server = programs.serve(target)
    with programs.sniff() as wire:
        client = programs.dial(source, server.address)
        assert echoes(client, CARD * 400)
        packets = wire.cut()
    ports = {packet.destination_port for packet in packets} | {packet.source_port for packet in packets}
    assert HBONE_PORT in ports
    assert server.address[1] not in ports
    assert not any(CARD in packet.payload for packet in packets)


def test_sniffer_reads_what_is_not_enrolled(lab: RunningLab, programs: Programs) -> None:
    """What the other tests' sniffer would show if a connection were in plaintext."""
    server = programs.serve("intruder")
    with programs.sniff() as wire:
        assert echoes(programs.dial("guest", server.address), CARD)
        assert wire.carries(CARD)


@pytest.mark.both_backends
def test_pods_of_one_node_talk_in_tls_only(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("siem")
    with programs.sniff_pod("siem") as wire:
        client = programs.dial("shipper", server.address)
        assert echoes(client, CARD * 400)
        packets = wire.cut()
    ports = {packet.destination_port for packet in packets} | {packet.source_port for packet in packets}
    assert HBONE_PORT in ports
    assert server.address[1] not in ports
    assert not any(CARD in packet.payload for packet in packets)
    assert lab.outbound(client)["peer"] == lab.identity("siem")


@pytest.mark.both_backends
@BETWEEN_NODES
def test_both_nodes_name_the_other_sides_identity(
    lab: RunningLab, programs: Programs, source: str, target: str
) -> None:
    server = programs.serve(target)
    client = programs.dial(source, server.address)
    assert echoes(client)
    near = lab.outbound(client)
    assert near["mtls"]
    assert near["peer"] == lab.identity(target)
    assert near["tls"].startswith("TLSv1.3 ")
    assert near["reason"] is None

    def find() -> list[dict[str, object]]:
        return [
            row
            for row in lab.connections(lab.node_of(target))
            if row["direction"] == "inbound" and row["destination"] == endpoint(server.address)
        ]

    (far,) = wait_for(find, "the far agent shows the connection")
    assert far["mtls"]
    assert far["peer"] == lab.identity(source)
    assert far["source_workload"] == f"default/{source}"


def test_connection_shows_the_bytes_of_each_direction(lab: RunningLab, programs: Programs) -> None:
    def answer(connection: socket.socket) -> None:
        receive_exactly(connection, 1000)
        connection.sendall(bytes(70_000))

    server = programs.serve("pipeline", answer)
    client = programs.dial("shipper", server.address)
    client.sendall(bytes(1000))
    receive_exactly(client, 70_000)
    row = lab.outbound(client)
    assert (row["bytes_sent"], row["bytes_received"]) == (1000, 70_000)


def service_address(programs: Programs) -> str:
    return str(SERVICE_ADDRESS if programs.version == 4 else SERVICE_ADDRESS_6)


def test_service_address_leads_to_an_endpoint_in_tls(lab: RunningLab, programs: Programs) -> None:
    programs.serve("pipeline", port=PIPELINE_HTTP_PORT)
    service = service_address(programs), PIPELINE_HTTP_PORT
    with programs.sniff() as wire:
        client = programs.dial("shipper", service)
        assert echoes(client, CARD)
        packets = wire.cut()
    assert not any(CARD in packet.payload for packet in packets)
    assert service[0] not in {packet.destination for packet in packets}
    row = lab.outbound(client)
    assert row["destination"] == endpoint(service)
    assert row["endpoint"] == endpoint((programs.at("pipeline"), PIPELINE_HTTP_PORT))
    assert row["peer"] == lab.identity("pipeline")


def test_service_without_such_a_port_refuses(lab: RunningLab, programs: Programs) -> None:
    with pytest.raises(ConnectionError):  # noqa: PT012
        client = programs.dial("shipper", (service_address(programs), 81))
        receive_exactly(client, 1)


def test_unenrolled_client_reaches_a_permissive_workload_in_plaintext(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("guest", server.address)
    with programs.sniff() as wire:
        assert echoes(client, CARD)
        assert wire.carries(CARD)
    rows = [row for row in lab.connections("node2") if row["source_workload"] == "default/guest"]
    assert [(row["mtls"], row["reason"]) for row in rows if row["state"] == "open"] == [(False, "source-not-enrolled")]


def test_enrolled_client_reaches_an_unenrolled_workload_in_plaintext(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("intruder")
    client = programs.dial("shipper", server.address)
    with programs.sniff() as wire:
        assert echoes(client, CARD)
        assert wire.carries(CARD)
    row = lab.outbound(client)
    assert (row["mtls"], row["reason"]) == (False, "destination-not-enrolled")


def test_server_sees_the_clients_address(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    assert echoes(programs.dial("shipper", server.address))
    assert [peer[0] for peer in server.peers] == [programs.at("shipper")]


def test_client_sees_the_address_it_dialled(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert client.getpeername()[:2] == server.address
    assert client.getsockname()[0] == programs.at("shipper")


def test_own_address_and_loopback_stay_inside_the_pod(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    with programs.sniff_pod("pipeline") as wire:
        client = programs.dial("pipeline", server.address)
        assert echoes(client, CARD)
        assert [
            packet for packet in wire.cut() if server.address[1] in (packet.source_port, packet.destination_port)
        ] == []
    source = endpoint(client.getsockname())
    assert source not in {row["source"] for row in lab.connections("node2")}


def test_connections_of_one_pair_share_a_tunnel(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    first = programs.dial("shipper", server.address)
    assert echoes(first)
    with programs.sniff() as wire:
        for _ in range(20):
            assert echoes(programs.dial("shipper", server.address))
        opened = [packet for packet in wire.cut() if packet.opens]
    # One a worker thread: they share nothing.
    assert len(opened) <= lab.core_stats("node1").workers
    assert ports_used(opened) <= {HBONE_PORT}


# ---- clients that go before their answer comes


def close_before(client: socket.socket, server: Server) -> None:
    """The answer meets a socket that nobody reads any more: the client's kernel resets."""
    client.close()
    application = server.connection()
    assert application.recv(1) == b""
    application.sendall(CARD)
    application.close()


def reset_before(client: socket.socket, server: Server) -> None:
    """There is nobody to answer."""
    reset(client)
    with pytest.raises(ConnectionResetError):
        server.connection().recv(1)


def close_in_the_middle(client: socket.socket, server: Server) -> None:
    """More of the answer comes after the client, which has not read what it got, has closed."""
    application = server.connection()
    application.sendall(CARD)
    receive_exactly(client, 1)
    client.close()
    with pytest.raises(OSError):  # noqa: PT011, PT012
        while True:
            application.sendall(CARD * 1000)


GOINGS = pytest.mark.parametrize("goes", [close_before, reset_before, close_in_the_middle])
KINDS = pytest.mark.parametrize("target", ["pipeline", "intruder"], ids=["mtls", "plaintext"])


@pytest.fixture(scope="module")
def relaying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab in which plaintext goes through the cores as well."""
    with running_lab(tmp_path_factory.mktemp("relaying"), settings={"plaintext": "proxied"}, ipv6=True) as lab:
        yield lab


@pytest.fixture
def gone(
    request: pytest.FixtureRequest,
    lab: RunningLab,
    programs: Programs,
    goes: Callable[[socket.socket, Server], None],
    target: str,
) -> Iterator[Gone]:
    """A captured connection of shipper, through the core, whose client has gone so, seen on the link between the pod
    and its node."""
    if target == "pipeline":
        yield Gone(lab, programs, goes, target)
        return
    relaying: RunningLab = request.getfixturevalue("relaying")
    with Programs(relaying, programs.version) as through_core:
        yield Gone(relaying, through_core, goes, target)


@KINDS
@GOINGS
def test_nothing_of_a_captured_connection_leaves_when_its_client_goes(gone: Gone) -> None:
    assert gone.packets == []


@KINDS
@GOINGS
def test_no_socket_is_left_when_the_client_of_a_captured_connection_goes(gone: Gone) -> None:
    wait_for(lambda: gone.sockets() == [], "no socket of the connection waits for an acknowledgement", 10)


class Gone:
    """`packets`: those of the captured connection itself that left the pod by its interface."""

    def __init__(
        self, lab: RunningLab, programs: Programs, goes: Callable[[socket.socket, Server], None], target: str
    ) -> None:
        server = programs.serve(target, silent)
        client = programs.dial("shipper", server.address)
        self._lab = lab
        self._source: Address = client.getsockname()[:2]
        self._server = server.address
        client.sendall(CARD)
        assert receive_exactly(server.connection(), len(CARD)) == CARD
        with programs.sniff_pod("shipper") as wire:
            goes(client, server)
            wait_for(self._is_closed, "the core is done with the connection")
            wait_for(lambda: ESTABLISHED not in self.sockets(), "the application's side of it has ended")
            ends = {self._source, self._server}
            self.packets = [
                packet
                for packet in wire.cut()
                if {(packet.source, packet.source_port), (packet.destination, packet.destination_port)} == ends
            ]

    def sockets(self) -> list[int]:
        """The states of the sockets that it has in the pod, but for TIME_WAIT: both ends are there, the application's
        and the core's."""
        ends = {self._source, self._server}
        sockets = self._lab.run("shipper", tcp_table)
        return [one.state for one in sockets if {one.local, one.remote} == ends and one.state != TIME_WAIT]

    def _is_closed(self) -> bool:
        source = endpoint(self._source)
        rows = [row for row in self._lab.connections("node1") if row["source"] == source]
        return [row["state"] for row in rows] == ["closed"]


def test_syn_cookies_on_both_sides(lab: RunningLab, programs: Programs) -> None:
    pods = ("shipper", "pipeline", "intruder")
    before = {pod: lab.sysctl(pod, "ipv4/tcp_syncookies") for pod in pods}
    for pod in pods:
        programs.at_end(lambda pod=pod: lab.sysctl(pod, "ipv4/tcp_syncookies", before[pod]))
        lab.sysctl(pod, "ipv4/tcp_syncookies", "2")  # always, see ip-sysctl.rst
    cookies = {pod: _cookies_received(lab, pod) for pod in pods}
    server = programs.serve("pipeline")
    with programs.sniff() as wire:
        for _ in range(10):
            assert echoes(programs.dial("shipper", server.address), CARD)
        assert not wire.carries(CARD)
    assert echoes(programs.dial("intruder", server.address))
    assert _cookies_received(lab, "shipper") > cookies["shipper"]
    assert _cookies_received(lab, "pipeline") > cookies["pipeline"]


def _cookies_received(lab: RunningLab, pod: str) -> int:
    def read() -> int:
        # Not /proc/net: that is the namespace of the process's main thread.
        text = Path("/proc/thread-self/net/netstat").read_text()
        names, values = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
        return int(values[names.index("SyncookiesRecv")])

    return lab.run(pod, read)
