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

from nodeseal.identity.authority import Issuer
from nodeseal.lab.mesh_state import change_workloads
from nodeseal.lab.namespaces import run_in
from nodeseal.mesh.model import WorkloadName
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.sources.directory import publish
from support.lab import (
    HBONE_PORT,
    PATIENCE,
    Lines,
    Programs,
    RunningLab,
    echoes,
    receive_exactly,
    running_lab,
    wait_until,
)
from support.namespaces import needs_root

pytestmark = needs_root

LIFETIME = "6s"
BULK = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Certificates live for six seconds and are renewed about every three. `double` stands in for a peer."""
    settings = {"certificate_lifetime": LIFETIME}
    with running_lab(tmp_path_factory.mktemp("renewal"), more_pods=("double:node2:plain",), settings=settings) as lab:
        yield lab


def serial(lab: RunningLab, pod: str) -> int:
    """Of the certificate that the pod's agent says it has."""
    return int(lab.workload(pod)["certificate"]["serial"], 16)


def wait_for_renewal(lab: RunningLab, *pods: str) -> None:
    """Returns when each of the pods has another certificate than now."""
    for pod, old in [(pod, serial(lab, pod)) for pod in pods]:
        wait_until(lambda pod=pod, old=old: serial(lab, pod) != old, f"{pod} gets a new certificate")


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
    wait_until(lambda: datetime.now(UTC) > expiry, "the certificate has expired")
    assert echoes(client)
    assert lab.outbound(client)["mtls"]


def test_peer_is_shown_the_new_certificate_of_a_server(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    context = tls_context(lab, ssl.PROTOCOL_TLS_CLIENT, "shipper", tmp_path)

    def presented() -> int:
        def connect() -> socket.socket:
            return socket.create_connection((lab.address("pipeline"), HBONE_PORT), timeout=PATIENCE)

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
    tunnels = Tunnels(lab, tls_context(lab, ssl.PROTOCOL_TLS_SERVER, "double", tmp_path))
    programs.at_end(tunnels.close)
    # As if a third node had enrolled it: its agent is this test.
    change_workloads(lab.lab.mesh, {"double": {"node": "node9"}})
    publish(lab.lab.mesh, "node9", [WorkloadName("default", "double")])

    def dial() -> int:
        count = len(tunnels.serials)
        try:
            client = programs.dial("shipper", (lab.address("double"), 80))
        except ConnectionError:
            return 0  # in plaintext still, where nothing listens
        wait_until(lambda: len(tunnels.serials) > count or _ended(client), "the core opens a tunnel to the double")
        client.close()
        return tunnels.serials[-1] if len(tunnels.serials) > count else 0

    shown = wait_until(dial, "the core of node1 knows that the double is enrolled")
    wait_for_renewal(lab, "shipper")
    before = serial(lab, "shipper")
    # New streams use new tunnels: without a renewal there would be none.
    again = dial()
    assert again != shown
    assert again in (before, serial(lab, "shipper"))


class Tunnels:
    """Accepts TLS connections in the pod `double` on port 15008, keeps them, and notes the clients' certificates."""

    def __init__(self, lab: RunningLab, context: ssl.SSLContext) -> None:
        self.serials: list[int] = []
        self._context = context
        self._open: list[ssl.SSLSocket] = []
        self._listener = lab.run(
            "double", lambda: socket.create_server((lab.address("double"), HBONE_PORT), backlog=64)
        )
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends all of it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for tunnel in self._open:
            tunnel.close()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.settimeout(PATIENCE)
            tunnel = self._context.wrap_socket(raw, server_side=True)
            self._open.append(tunnel)
            self.serials.append(serial_of(tunnel))


def tls_context(lab: RunningLab, protocol: int, pod: str, directory: Path) -> ssl.SSLContext:
    """A peer's with the pod's identity, from the lab's CA."""
    now = datetime.now(UTC)
    issuer = Issuer.load(lab.directory / "ca", now)
    svid = issuer.issue(SpiffeId.parse(lab.identity(pod)), lifetime=timedelta(hours=1), now=now)
    certificate = directory / "peer.pem"
    certificate.write_text(svid.chain_pem + svid.key_pem)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=issuer.bundle_pem)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    return context


def serial_of(tunnel: ssl.SSLSocket) -> int:
    """Of the certificate that the other side presented."""
    certificate = tunnel.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def _ended(client: socket.socket) -> bool:
    """Whether the other side has ended the connection."""
    try:
        client.setblocking(False)
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
