"""Envoy as the HBONE client of our core: tcp_proxy with a tunneling_config in the pod `edge`, towards pipeline."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interop.certificates import identity, issue
from interop.envoy import Envoy
from interop.exchange import digest, receive_all
from support.connection import echo, echoes, endpoint, receive_exactly, reset, silent
from support.lab import RunningLab
from support.patience import wait_for
from support.programs import Programs
from support.sniffer import ports_used

HTTP, LINES, TEST, CLOSED = 8080, 7000, 9100, 9999
LARGE = 48 << 20
MANY = 250
GET = b"GET / HTTP/1.1\r\nHost: pipeline\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def envoy(lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    credential = issue(lab.directory / "ca", "edge")
    values = {"destination": lab.address("pipeline"), "peer": identity("pipeline")}
    with Envoy(lab, "edge", "client.yaml", tmp_path_factory.mktemp("envoy"), credential, **values) as envoy:
        yield envoy


def dial(lab: RunningLab, programs: Programs, port: int) -> socket.socket:
    """A connection of an application in the pod to Envoy, which takes it on to the same port of pipeline."""
    return programs.dial("edge", (lab.address("edge"), port))


def shown(lab: RunningLab, source: str) -> dict[str, Any]:
    """The client's connection as `nodeseal connections` shows it on pipeline's node: Envoy tells the client's port in
    the header `forwarded`."""
    command = lab.command("connections", "--run-dir", str(lab.run_dir("node2")), "-o", "json")
    assert command.returncode == 0, command.stderr
    return next(row for row in json.loads(command.stdout)["connections"] if row["source"] == source)


def test_request_reaches_the_application(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    client = dial(lab, programs, HTTP)
    client.sendall(GET)
    response = receive_all(client)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"\r\n\r\npipeline: ready\n")


def test_application_sees_the_address_of_envoys_pod(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("pipeline", echo, TEST)
    assert echoes(dial(lab, programs, TEST))
    assert [host for host, _port in server.peers] == [lab.address("edge")]


def test_connection_is_shown_as_mtls_with_envoys_identity(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    client = dial(lab, programs, LINES)
    assert echoes(client, b"one line\n")
    row = shown(lab, endpoint(client.getsockname()))
    assert row["state"] == "open"
    assert row["mtls"] is True
    assert row["peer"] == identity("edge")
    assert row["tls"].startswith("TLSv1.3 ")
    assert row["reason"] is None
    assert (row["source_workload"], row["destination_workload"]) == ("default/edge", "default/pipeline")
    assert (row["bytes_sent"], row["bytes_received"]) == (9, 9)


def test_envoy_verifies_our_identity(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    client = dial(lab, programs, LINES)
    source = endpoint(client.getsockname())
    assert echoes(client, b"one line\n")
    client.close()
    entry = envoy.entry("client", source)
    assert entry["peer"] == identity("pipeline")
    assert entry["tls"] == "TLSv1.3"


def test_envoy_that_expects_another_identity_refuses_ours(
    lab: RunningLab, programs: Programs, tmp_path: Path, envoy: Envoy
) -> None:
    """The counterpart of the test above: Envoy's verification is not for show."""
    values = {"destination": lab.address("pipeline"), "peer": identity("siem")}
    with Envoy(lab, "intruder", "client.yaml", tmp_path, issue(lab.directory / "ca", "intruder"), **values) as other:
        client = programs.dial("intruder", (lab.address("intruder"), LINES))
        assert receive_all(client) == b""
        assert other.stats("cluster.hbone.ssl.")["fail_verify_san"] > 0
    assert echoes(dial(lab, programs, LINES), b"one line\n")


def test_wire_carries_nothing_readable(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    with programs.sniff("node2") as wire:
        assert echoes(dial(lab, programs, LINES), b"4111 1111 1111 1111\n")
        packets = wire.cut()
    assert any(15008 in (packet.source_port, packet.destination_port) for packet in packets)
    assert not any(b"4111 1111" in packet.payload for packet in packets)
    assert ports_used(packets) <= {15008}


def test_large_bodies_both_ways_at_once(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    """Through the unmodified application, which sends back each line as it comes."""
    sent = b"".join(os.urandom(48 << 10).hex().encode() + b"\n" for _ in range(LARGE // (96 << 10)))
    client = dial(lab, programs, LINES)

    def send() -> None:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)

    sender = programs.thread(send)
    received = receive_all(client)
    sender.result()
    assert digest(received) == digest(sent)


def test_large_upload_of_random_bytes(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    sent = os.urandom(LARGE)

    def take(connection: socket.socket) -> None:
        connection.sendall(digest(receive_all(connection)).encode())
        connection.shutdown(socket.SHUT_WR)

    programs.serve("pipeline", take, TEST)
    client = dial(lab, programs, TEST)
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client).decode() == digest(sent)


def test_large_download_of_random_bytes(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    """The application speaks first, and ends first."""
    sent = os.urandom(LARGE)

    def give(connection: socket.socket) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)

    programs.serve("pipeline", give, TEST)
    assert digest(receive_all(dial(lab, programs, TEST))) == digest(sent)


def test_many_connections_at_once(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    """More than our core takes on one tunnel, so that Envoy has to open another."""
    clients = [dial(lab, programs, LINES) for _ in range(MANY)]
    for number, client in enumerate(clients):
        client.sendall(f"line {number}\n".encode())
    for number, client in enumerate(clients):
        expected = f"line {number}\n".encode()
        assert receive_exactly(client, len(expected)) == expected
    sources = {endpoint(client.getsockname()) for client in clients}
    rows = [row for row in lab.connections("node2") if row["source"] in sources and row["state"] == "open"]
    assert len(rows) == MANY
    assert {(row["mtls"], row["peer"]) for row in rows} == {(True, identity("edge"))}
    assert envoy.stats("cluster.hbone.")["upstream_cx_active"] >= 2


def test_client_half_close_still_receives(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("pipeline", silent, TEST)
    client = dial(lab, programs, TEST)
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    application = server.connection()
    assert receive_all(application) == b"question"
    application.sendall(b"answer")
    application.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"answer"


def test_application_half_close_still_receives(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("pipeline", silent, TEST)
    client = dial(lab, programs, TEST)
    application = server.connection()
    application.sendall(b"banner")
    application.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"banner"
    client.sendall(b"late")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(application) == b"late"


def test_reset_by_the_application_resets_envoys_stream(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    """With CONNECT_ERROR, as RFC 9113 section 8.5 wants it. Envoy 1.40 makes resets of all others, and of this one an
    orderly end: docs/operating.md says so."""
    server = programs.serve("pipeline", silent, TEST)
    client = dial(lab, programs, TEST)
    client.sendall(b"question")
    application = server.connection()
    assert receive_exactly(application, 8) == b"question"
    before = envoy.stats("cluster.hbone.http2.")["rx_reset"]
    reset(application)
    assert receive_all(client) == b""
    assert envoy.stats("cluster.hbone.http2.")["rx_reset"] == before + 1


def test_reset_by_the_client_reaches_the_application(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    server = programs.serve("pipeline", silent, TEST)
    client = dial(lab, programs, TEST)
    client.sendall(b"question")
    application = server.connection()
    assert receive_exactly(application, 8) == b"question"
    reset(client)
    with pytest.raises(ConnectionResetError):
        application.recv(1)


def test_closed_port_is_answered_502(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    client = dial(lab, programs, CLOSED)
    source = endpoint(client.getsockname())
    assert receive_all(client) == b""  # Envoy has read all that there was, so it ends the connection in order
    assert envoy.entry("client", source)["failure"] == "tunnel_response:502"
    (row,) = lab.refused("node2", destination=f"{lab.address('pipeline')}:{CLOSED}")
    assert (row["kind"], row["status"], row["reason"]) == ("stream", 502, "the application refused")


def test_slow_reader_stalls_only_itself(lab: RunningLab, programs: Programs, envoy: Envoy) -> None:
    """Two connections in one tunnel: one is not read, and the other goes on."""
    sent = 0

    def give(connection: socket.socket) -> None:
        nonlocal sent
        while True:
            sent += connection.send(bytes(1 << 20))

    programs.serve("pipeline", give, TEST)
    slow = dial(lab, programs, TEST)
    assert echoes(dial(lab, programs, LINES), b"in the same tunnel\n")
    assert receive_exactly(slow, 1) == b"\0"
    wait_for(lambda: sent > 4 << 20, "much more is sent than was read")
    for _ in range(16):
        assert echoes(dial(lab, programs, LINES), os.urandom(1 << 20).hex().encode() + b"\n")
    assert sent < 64 << 20
