"""Envoy as the HBONE server behind our core: it stands in the pod `gate`, in front of the programs there.

The pod belongs to a node of its own, `envoy-node`, which has no agent of ours: the tests publish it as enrolled, as
that node would.

Two things are not asked of Envoy 1.40, because it cannot do them here: when its application ends first, it resets the
stream behind the answer, so nothing can be sent to that application any more; and if more than about a stream's window
is still on its way then, it resets in the middle. test_envoy_client.py has both, with our core as the server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interop.certificates import CLIENT, Credential, identity, issue, issue_from_new_ca, sign
from interop.envoy import Envoy
from interop.exchange import digest, receive_all
from nodeseal.mesh.model import WorkloadName
from nodeseal.sources.directory.publications import publish
from nodeseal_lab import agents
from nodeseal_lab.demo.pcap import streams
from nodeseal_lab.demo.tls import parse_client_hello, parse_server_hello
from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.plan import NAMESPACE
from support.connection import echoes, endpoint, receive_exactly, reset, silent
from support.lab import HBONE_PORT, RunningLab
from support.patience import wait_for
from support.programs import Programs
from support.sniffer import carries, ports_used

HTTP, LINES, TEST, CLOSED = 8080, 7000, 9100, 9999
ENVOY_NODE = "envoy-node"
LARGE = 48 << 20
MANY = 250
CARD = b"4111 1111 1111 1111"
GET = b"GET / HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def mesh(lab: RunningLab) -> None:
    """`gate` runs the same programs as pipeline does, and the agents of the lab know that it is enrolled."""
    log = lab.lab.pod_directory("gate") / "access.log"
    lab.lab.start_app(
        "gate",
        "pipeline",
        *("--port", str(HTTP), "--lines-port", str(LINES)),
        *("--siem", f"{lab.address('siem')}:9000", "--access-log", str(log)),
    )
    gate = lab.lab.plan.pod("gate")
    for port in (HTTP, LINES):
        agents.wait_for_listener(gate, port, lab.lab.pod_directory("gate") / "pipeline.log")
    change_workloads(lab.lab.mesh, {"gate": {"node": ENVOY_NODE, "enrolled": True}})
    publish(lab.lab.mesh, ENVOY_NODE, [WorkloadName(NAMESPACE, "gate")])
    with Programs(lab) as programs:
        wait_for(lambda: tunnels_to_gate(lab, programs), "the agent of node1 sends what is for gate into a tunnel")


def tunnels_to_gate(lab: RunningLab, programs: Programs) -> bool:
    """Whether a connection to gate is not made in plaintext. No Envoy runs yet: what goes into a tunnel fails."""
    try:
        return not echoes(dial(programs, LINES), b"?\n")
    except (OSError, EOFError):
        return True


@contextmanager
def envoy_with(
    lab: RunningLab, directory: Path, credential: Credential, *, tls: str = "TLSv1_3", alpn: str = "h2"
) -> Iterator[Envoy]:
    values = {"peer": identity("shipper"), "tls": tls, "alpn": alpn}
    with Envoy(lab, "gate", "server.yaml", directory, credential, **values) as envoy:
        yield envoy


@pytest.fixture
def envoy(lab: RunningLab, tmp_path: Path) -> Iterator[Envoy]:
    with envoy_with(lab, tmp_path / "envoy", proper(lab, tmp_path)) as envoy:
        yield envoy


def dial(programs: Programs, port: int) -> socket.socket:
    """A connection of an unmodified application in the enrolled pod shipper to a port of gate."""
    return programs.dial("shipper", (programs.lab.address("gate"), port))


def forwarded(source: str) -> str:
    """How our core tells a client's address and port in the header (RFC 7239)."""
    return f'for="{source}"'


def refused(lab: RunningLab, programs: Programs, port: int) -> dict[str, Any]:
    """A client that sends a card number is reset; its connection, as the agent of its node shows it afterwards."""

    def attempt() -> None:
        client = dial(programs, port)
        client.sendall(CARD + b"\n")
        client.recv(1)

    # The reset may be there before the client gets to send, or even before connect() has returned.
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        attempt()
    destination = f"{lab.address('gate')}:{port}"
    rows = [row for row in lab.connections("node1") if row["destination"] == destination and row["state"] == "closed"]
    return min(rows, key=lambda row: float(row["closed_seconds"]))


def test_request_reaches_the_application(programs: Programs, envoy: Envoy) -> None:
    client = dial(programs, HTTP)
    client.sendall(GET)
    response = receive_all(client)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"\r\n\r\npipeline: ready\n")


def test_connection_is_shown_as_mtls_with_envoys_identity(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    client = dial(programs, LINES)
    assert echoes(client, b"one line\n")
    row = lab.outbound(client)
    assert row["mtls"] is True
    assert row["peer"] == identity("gate")
    assert row["tls"].startswith("TLSv1.3 ")
    assert row["endpoint"] == f"{lab.address('gate')}:{LINES}"


def test_envoy_sees_our_identity_and_the_clients_address(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    client = dial(programs, LINES)
    source = endpoint(client.getsockname())
    assert echoes(client, b"one line\n")
    client.close()
    entry = envoy.entry("forwarded", forwarded(source))
    assert entry["peer"] == identity("shipper")
    assert entry["tls"] == "TLSv1.3"
    assert entry["client"].startswith(f"{lab.address('shipper')}:")
    assert (entry["method"], entry["authority"]) == ("CONNECT", f"{lab.address('gate')}:{LINES}")


def test_wire_carries_tls_1_3_and_nothing_readable(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    with programs.sniff("node1") as wire:
        assert echoes(dial(programs, LINES), CARD + b"\n")
        packets = wire.cut()
    assert ports_used(packets) == {HBONE_PORT}
    assert not carries(packets, CARD)
    data = streams(packets)
    (flow,) = [packet.flow for packet in packets if packet.opens]
    assert flow[0] == lab.address("shipper")
    assert parse_client_hello(data[flow]).versions == ("TLS 1.3",)
    assert parse_server_hello(data[flow[2:] + flow[:2]]).version == "TLS 1.3"


def test_large_bodies_both_ways_at_once(programs: Programs, envoy: Envoy) -> None:
    sent = b"".join(os.urandom(48 << 10).hex().encode() + b"\n" for _ in range(LARGE // (96 << 10)))
    client = dial(programs, LINES)

    def send() -> None:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)

    sender = programs.thread(send)
    received = receive_all(client)
    sender.result()
    assert digest(received) == digest(sent)


def test_large_upload_of_random_bytes(programs: Programs, envoy: Envoy) -> None:
    sent = os.urandom(LARGE)

    def take(connection: socket.socket) -> None:
        connection.sendall(digest(receive_all(connection)).encode())
        connection.shutdown(socket.SHUT_WR)

    programs.serve("gate", take, TEST)
    client = dial(programs, TEST)
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client).decode() == digest(sent)


def test_large_download_of_random_bytes(programs: Programs, envoy: Envoy) -> None:
    sent = os.urandom(LARGE)

    def give(connection: socket.socket) -> None:
        connection.sendall(sent)
        assert receive_all(connection) == b"thanks"
        connection.shutdown(socket.SHUT_WR)

    programs.serve("gate", give, TEST)
    client = dial(programs, TEST)
    assert digest(receive_exactly(client, LARGE)) == digest(sent)
    client.sendall(b"thanks")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""


def test_complete_answer_is_delivered_when_envoy_resets_behind_it(programs: Programs, envoy: Envoy) -> None:
    """RFC 9113 section 8.1: RST_STREAM with NO_ERROR may follow a complete answer, which must not be discarded."""
    sent = os.urandom(500_000)

    def give(connection: socket.socket) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)

    programs.serve("gate", give, TEST)
    client = dial(programs, TEST)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # most of it waits in our core
    envoy.entry("forwarded", forwarded(endpoint(client.getsockname())))  # Envoy is done with the stream
    assert digest(receive_all(client)) == digest(sent)


def test_complete_answer_is_delivered_to_a_client_that_is_still_sending(programs: Programs, envoy: Envoy) -> None:
    """An early answer to a large upload: closing the application's socket with unread bytes would reset it."""
    sent = os.urandom(100_000)
    uploading = threading.Event()

    def give(connection: socket.socket) -> None:
        uploading.wait(30)
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)

    programs.serve("gate", give, TEST)
    client = dial(programs, TEST)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    timeout = client.gettimeout()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:  # until everything on the way is full
            client.send(bytes(65536))
    client.settimeout(timeout)
    uploading.set()
    envoy.entry("forwarded", forwarded(endpoint(client.getsockname())))  # Envoy is done with the stream
    assert digest(receive_all(client)) == digest(sent)


def test_many_connections_at_once(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    clients = [dial(programs, LINES) for _ in range(MANY)]
    for number, client in enumerate(clients):
        client.sendall(f"line {number}\n".encode())
    for number, client in enumerate(clients):
        expected = f"line {number}\n".encode()
        assert receive_exactly(client, len(expected)) == expected
    sources = {endpoint(client.getsockname()) for client in clients}
    rows = [row for row in lab.connections("node1") if row["source"] in sources and row["state"] == "open"]
    assert len(rows) == MANY
    assert {(row["mtls"], row["peer"]) for row in rows} == {(True, identity("gate"))}


def test_client_half_close_still_receives(programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("gate", silent, TEST)
    client = dial(programs, TEST)
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    application = server.connection()
    assert receive_all(application) == b"question"
    application.sendall(b"answer")
    application.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"answer"


def test_reset_by_the_application_reaches_the_client(programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("gate", silent, TEST)
    client = dial(programs, TEST)
    client.sendall(b"question")
    application = server.connection()
    assert receive_exactly(application, 8) == b"question"
    reset(application)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_reset_by_the_client_resets_the_stream(programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("gate", silent, TEST)
    client = dial(programs, TEST)
    source = endpoint(client.getsockname())
    client.sendall(b"question")
    application = server.connection()
    assert receive_exactly(application, 8) == b"question"
    reset(client)
    assert application.recv(1) == b""  # Envoy closes towards its application in order
    assert envoy.entry("forwarded", forwarded(source))["flags"] == "DR"  # "downstream remote reset"


def test_closed_port_refuses_a_client_that_waits(programs: Programs, envoy: Envoy, lab: RunningLab) -> None:
    """Envoy says 503 and no more."""
    with pytest.raises(ConnectionRefusedError):
        programs.dial("probe", (lab.address("gate"), CLOSED))


def test_closed_port_resets_the_client(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    row = refused(lab, programs, CLOSED)
    assert envoy.entry("forwarded", forwarded(row["source"]))["status"] == 503
    assert row["reason"] == "the peer could not reach the application"


def test_slow_reader_stalls_only_itself(programs: Programs, envoy: Envoy) -> None:
    sent = 0

    def give(connection: socket.socket) -> None:
        nonlocal sent
        while True:
            sent += connection.send(bytes(1 << 20))

    programs.serve("gate", give, TEST)
    slow = dial(programs, TEST)
    assert receive_exactly(slow, 1) == b"\0"
    wait_for(lambda: sent > 4 << 20, "much more is sent than was read")
    for _ in range(16):
        assert echoes(dial(programs, LINES), os.urandom(1 << 20).hex().encode() + b"\n")
    assert sent < 64 << 20


def another_identity(lab: RunningLab, directory: Path) -> Credential:
    return issue(lab.directory / "ca", "intruder")


def another_ca(lab: RunningLab, directory: Path) -> Credential:
    """Same names, but from a CA that nobody trusts; it trusts ours itself, so that it is not Envoy that refuses."""
    stranger = issue_from_new_ca(directory / "ca", "gate")
    return replace(stranger, bundle=issue(lab.directory / "ca", "gate").bundle)


def another_trust_domain(lab: RunningLab, directory: Path) -> Credential:
    return sign(lab.directory / "ca", uris=[identity("gate", "other.example")])


def expired(lab: RunningLab, directory: Path) -> Credential:
    return sign(lab.directory / "ca", uris=[identity("gate")], expired=True)


def for_clients_only(lab: RunningLab, directory: Path) -> Credential:
    return sign(lab.directory / "ca", uris=[identity("gate")], usage=[CLIENT])


def proper(lab: RunningLab, directory: Path) -> Credential:
    return issue(lab.directory / "ca", "gate")


@pytest.mark.parametrize(
    ("credential", "tls", "alpn", "reason"),
    [
        pytest.param(another_identity, "TLSv1_3", "h2", "peer has another identity than expected", id="identity"),
        pytest.param(another_ca, "TLSv1_3", "h2", "peer certificate is of a CA that is not trusted here", id="ca"),
        pytest.param(another_trust_domain, "TLSv1_3", "h2", "peer is of another trust domain", id="trust-domain"),
        pytest.param(expired, "TLSv1_3", "h2", "peer certificate has expired", id="expired"),
        pytest.param(
            for_clients_only, "TLSv1_3", "h2", "peer certificate is not for servers (extended key usage)", id="usage"
        ),
        pytest.param(proper, "TLSv1_2", "h2", "peer does not speak TLS 1.3", id="tls-1.2"),
        pytest.param(proper, "TLSv1_3", "http/1.1", "peer does not speak HTTP/2 (ALPN h2)", id="alpn"),
    ],
)
def test_peer_is_refused_and_gets_nothing(
    lab: RunningLab,
    programs: Programs,
    tmp_path: Path,
    credential: Callable[[RunningLab, Path], Credential],
    tls: str,
    alpn: str,
    reason: str,
) -> None:
    with programs.sniff("node1") as wire:
        with envoy_with(lab, tmp_path / "envoy", credential(lab, tmp_path), tls=tls, alpn=alpn) as envoy:
            row = refused(lab, programs, LINES)
            assert envoy.access_log() == []
        packets = wire.cut()
    assert row["reason"].startswith(reason)
    assert (row["mtls"], row["bytes_sent"], row["peer"]) == (False, 0, None)
    assert ports_used(packets) == {HBONE_PORT}
    assert not carries(packets, CARD)
    with envoy_with(lab, tmp_path / "proper", proper(lab, tmp_path)):
        assert echoes(dial(programs, LINES), CARD + b"\n")


def test_nothing_crosses_in_plaintext_while_envoy_is_away(lab: RunningLab, programs: Programs) -> None:
    with programs.sniff("node1") as wire:
        row = refused(lab, programs, LINES)
        packets = wire.cut()
    assert row["reason"] == "the peer's port 15008 refuses connections"
    assert ports_used(packets) == {HBONE_PORT}
    assert not carries(packets, CARD)
