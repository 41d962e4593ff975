"""Envoy as the HBONE server behind our core: it stands in the pod `gate`, in front of the programs there.

The pod belongs to a node of its own, `envoy-node`, which has no agent of ours: the tests publish it as enrolled, as
that node would.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from interop.certificates import Credential, identity, issue, issue_from_new_ca, sign
from interop.envoy import Envoy
from nodeseal.lab import agents
from nodeseal.lab.demo.tls import parse_client_hello, parse_server_hello
from nodeseal.lab.demo.pcap import streams
from nodeseal.lab.mesh_state import change_workloads
from nodeseal.lab.plan import NAMESPACE, TRUST_DOMAIN
from nodeseal.mesh.model import WorkloadName
from nodeseal.sources.publications import publish
from support.lab import (
    HBONE_PORT,
    Programs,
    RunningLab,
    carries,
    echo,
    echoes,
    endpoint,
    ports_used,
    receive_exactly,
    reset,
    silent,
    wait_until,
)

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
        wait_until(lambda: tunnels_to_gate(lab, programs), "the agent of node1 sends what is for gate into a tunnel")


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
def proper(lab: RunningLab) -> Credential:
    return issue(lab.directory / "ca", "gate")


@pytest.fixture
def envoy(lab: RunningLab, tmp_path: Path, proper: Credential) -> Iterator[Envoy]:
    with envoy_with(lab, tmp_path / "envoy", proper) as envoy:
        yield envoy


def dial(programs: Programs, port: int) -> socket.socket:
    """A connection of an unmodified application in the enrolled pod shipper to a port of gate."""
    return programs.dial("shipper", (programs.lab.address("gate"), port))


def receive_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while part := connection.recv(1 << 20):
        data += part
    return bytes(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def access_entry(envoy: Envoy, source: str) -> dict[str, Any]:
    """Envoy's entry for the request of this client, which it writes at its end; our core tells the client's port in the
    header `forwarded`."""

    def find() -> list[dict[str, Any]]:
        return [entry for entry in envoy.access_log() if entry["forwarded"] == f'for="{source}"']

    return wait_until(find, f"Envoy's access log has {source}")[0]


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


def test_envoy_sees_our_identity_and_the_clients_address(
    lab: RunningLab, programs: Programs, envoy: Envoy
) -> None:
    client = dial(programs, LINES)
    source = endpoint(client.getsockname())
    assert echoes(client, b"one line\n")
    client.close()
    entry = access_entry(envoy, source)
    assert entry["peer"] == identity("shipper")
    assert entry["tls"] == "TLSv1.3"
    assert entry["client"].startswith(f"{lab.address('shipper')}:")
    assert (entry["method"], entry["authority"]) == ("CONNECT", f"{lab.address('gate')}:{LINES}")


def test_wire_carries_tls_1_3_and_nothing_readable(programs: Programs, proper: Credential, envoy: Envoy) -> None:
    with programs.sniff("node1") as wire:
        assert echoes(dial(programs, LINES), CARD + b"\n")
        packets = wire.cut()
    print(ports_used(packets))
    assert not carries(packets, CARD)


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
        connection.shutdown(socket.SHUT_WR)

    programs.serve("gate", give, TEST)
    assert digest(receive_all(dial(programs, TEST))) == digest(sent)


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


def test_application_half_close_still_receives(programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("gate", silent, TEST)
    client = dial(programs, TEST)
    application = server.connection()
    application.sendall(b"banner")
    application.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"banner"
    client.sendall(b"late")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(application) == b"late"


def test_reset_by_the_application_reaches_the_client(programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("gate", silent, TEST)
    client = dial(programs, TEST)
    client.sendall(b"question")
    application = server.connection()
    assert receive_exactly(application, 8) == b"question"
    reset(application)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_reset_by_the_client_reaches_the_application(programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("gate", silent, TEST)
    client = dial(programs, TEST)
    client.sendall(b"question")
    application = server.connection()
    assert receive_exactly(application, 8) == b"question"
    reset(client)
    with pytest.raises(ConnectionResetError):
        application.recv(1)


def test_closed_port_resets_the_client(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    client = dial(programs, CLOSED)
    source = endpoint(client.getsockname())
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert access_entry(envoy, source)["status"] == 503
    assert lab.outbound(client)["reason"] == "the peer could not reach the application"


@pytest.mark.parametrize("case", ["another identity", "another CA", "another trust domain", "TLS 1.2", "no HTTP/2"])
def test_peer_is_refused(lab: RunningLab, programs: Programs, tmp_path: Path, proper: Credential, case: str) -> None:
    ca = lab.directory / "ca"
    known = proper.bundle
    tls, alpn = "TLSv1_3", "h2"
    credential = proper
    if case == "another identity":
        credential = issue(ca, "intruder")
    elif case == "another CA":
        stranger = issue_from_new_ca(tmp_path / "ca", "gate")
        credential = Credential(stranger.chain, stranger.key, known)
    elif case == "another trust domain":
        credential = sign(ca, uris=[identity("gate", "other.example")])
    elif case == "TLS 1.2":
        tls = "TLSv1_2"
    else:
        alpn = "http/1.1"
    with programs.sniff("node1") as wire, envoy_with(lab, tmp_path / "envoy", credential, tls=tls, alpn=alpn) as envoy:
        client = dial(programs, LINES)
        client.sendall(CARD + b"\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        packets = wire.cut()
        print(lab.outbound(client)["reason"], envoy.stats("listener.*15008.ssl"), ports_used(packets), envoy.access_log())
