"""Certificates that are renewed under load: connections feel nothing, new tunnels use the new certificate."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from nodeseal.authority.renewal import renew
from nodeseal_lab.namespaces import run_in
from support.connection import echoes, receive_exactly
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.peer import Tunnels, dial_double, publish_double, serial_of, tls_context
from support.programs import Lines, Programs

IP_VERSIONS = (4, 6)
LIFETIME = "6s"
NODES = ("node1", "node2")
BULK = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Certificates live for six seconds and are renewed about every three. `double` stands in for a peer."""
    settings, pods = {"certificate_lifetime": LIFETIME}, ("double:node2:plain",)
    with running_lab(tmp_path_factory.mktemp("renewal"), more_pods=pods, settings=settings, ipv6=True) as lab:
        yield lab


def serial(lab: RunningLab, pod: str) -> int:
    """Of the certificate that the pod's agent says it has."""
    return int(lab.workload(pod)["certificate"]["serial"], 16)


def wait_for_renewal(lab: RunningLab, *pods: str) -> None:
    """Returns when each of the pods has another certificate than now."""
    for pod, old in [(pod, serial(lab, pod)) for pod in pods]:
        wait_for(lambda pod=pod, old=old: serial(lab, pod) != old, f"{pod} gets a new certificate")


def test_renewal_under_load_disturbs_no_connection(lab: RunningLab, programs: Programs) -> None:
    lines = [
        Lines(programs, source, programs.serve(target).address)
        for source, target in (("shipper", "pipeline"), ("pipeline", "siem"), ("shipper", "siem"))
    ]
    server = programs.serve("pipeline")
    stop = threading.Event()
    programs.at_end(stop.set)

    def bulk() -> int:
        connection = programs.dial("shipper", server.address)
        data = bytes(range(256)) * (BULK // 256)
        rounds = 0
        while not stop.is_set():
            sending = threading.Thread(target=connection.sendall, args=(data,), daemon=True)
            sending.start()
            assert receive_exactly(connection, BULK) == data
            sending.join()
            rounds += 1
        return rounds

    def newcomers() -> int:
        count = 0
        while not stop.wait(0.005):
            connection = programs.dial("shipper", server.address)
            assert echoes(connection)
            connection.close()
            count += 1
        return count

    workers = [programs.thread(bulk), programs.thread(newcomers)]
    for _ in range(2):
        wait_for_renewal(lab, "shipper", "pipeline", "siem")
        for one in lines:
            one.goes_on()
    stop.set()
    assert all(worker.result() > 0 for worker in workers)
    assert all(one.finish() > 0 for one in lines)


def test_idle_connection_outlives_the_certificate_that_it_was_opened_with(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    expiry = datetime.fromisoformat(lab.workload("shipper")["certificate"]["not_after"])
    wait_for_renewal(lab, "shipper", "pipeline")
    wait_for(lambda: datetime.now(UTC) > expiry, "the certificate has expired")
    assert echoes(client)
    assert lab.outbound(client)["mtls"]


def test_peer_is_shown_the_new_certificate_of_a_server(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    context = tls_context(lab, ssl.PROTOCOL_TLS_CLIENT, "shipper", tmp_path)

    def presented() -> int:
        def connect() -> socket.socket:
            return socket.create_connection((programs.at("pipeline"), HBONE_PORT), timeout=PATIENCE)

        # From the node: the pod's own connection to this port would be refused.
        with run_in(lab.lab.plan.node("node1").netns, connect) as raw, context.wrap_socket(raw) as tunnel:
            return serial_of(tunnel)

    for _ in range(2):
        before = serial(lab, "pipeline")
        shown = presented()
        assert shown in (before, serial(lab, "pipeline"))
        wait_for_renewal(lab, "pipeline")
        assert presented() != shown


def test_peer_is_shown_the_new_certificate_of_a_client(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    tunnels = Tunnels(programs, tls_context(lab, ssl.PROTOCOL_TLS_SERVER, "double", tmp_path))
    programs.at_end(tunnels.close)
    publish_double(lab)

    def dial() -> int:
        return dial_double(lab, programs, tunnels)

    shown = wait_for(dial, "the core of node1 knows that the double is enrolled")
    wait_for_renewal(lab, "shipper")
    before = serial(lab, "shipper")
    # New streams use new tunnels: without a renewal there would be none.
    again = dial()
    assert again != shown
    assert again in (before, serial(lab, "shipper"))


def test_intermediate_near_its_end_is_told_and_renewed_by_the_command(lab: RunningLab) -> None:
    """Last in this file: another intermediate signs from here on."""
    ca = lab.directory / "ca"

    def words(node: str) -> list[str]:
        return [problem["word"] for problem in lab.status(node)["problems"]]

    assert [words(node) for node in NODES] == [[], []]
    # Valid from five minutes ago: less than a third of its life is left.
    old = renew(ca, now=datetime.now(UTC), lifetime=timedelta(seconds=140))
    wait_for(lambda: all(words(node) == ["ca-expires"] for node in NODES), "every agent warns of it")
    checked = lab.command("status", "--run-dir", str(lab.run_dir("node1")), "--check")
    assert checked.returncode == 1
    warning = f"({ca}/intermediate.pem) expires in 0 days, at {end(old)}: nodeseal ca renew {ca}"
    for node in NODES:
        log = (lab.run_dir(node) / "agent.log").read_text().splitlines()
        assert [line for line in log if "WARNING" in line and line.endswith(warning)]
    done = lab.command("ca", "renew", str(ca), "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    wait_for(lambda: all(words(node) == [] for node in NODES), "every agent has taken on the next one")
    wait_for_renewal(lab, "shipper", "pipeline", "siem")


def end(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M}Z"
