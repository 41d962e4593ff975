"""A peer of the test's own: a pod that speaks TLS as a core does, with an identity from the lab's CA."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from nodeseal.authority.signer import Signer
from nodeseal.mesh.model import WorkloadName
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.sources.directory.publications import publish
from nodeseal_lab.mesh_state import change_workloads
from support.connection import family_of
from support.issued import issue
from support.lab import HBONE_PORT, RunningLab
from support.patience import PATIENCE, wait_for
from support.programs import Programs

DOUBLE = "double"


class Tunnels:
    """Accepts TLS connections in the pod `double` on port 15008, keeps them, and notes the clients' certificates."""

    def __init__(self, programs: Programs, context: ssl.SSLContext) -> None:
        self.serials: list[int] = []
        self._context = context
        self._open: list[ssl.SSLSocket] = []
        address = programs.at(DOUBLE)
        self._listener = programs.lab.run(
            DOUBLE,
            lambda: socket.create_server((address, HBONE_PORT), family=family_of(address), backlog=64),
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
    signer = Signer.load(lab.directory / "ca", now)
    svid = issue(signer, SpiffeId.parse(lab.identity(pod)), lifetime=timedelta(hours=1), now=now)
    certificate = directory / "peer.pem"
    certificate.write_text(svid.chain_pem + svid.key.pem())
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=signer.bundle_pem)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    return context


def serial_of(tunnel: ssl.SSLSocket) -> int:
    """Of the certificate that the other side presented."""
    certificate = tunnel.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def publish_double(lab: RunningLab) -> None:
    """As if a third node had enrolled the pod `double`: its agent is the test."""
    change_workloads(lab.lab.mesh, {DOUBLE: {"node": "node9"}})
    publish(lab.lab.mesh, "node9", [WorkloadName("default", DOUBLE)])


def dial_double(lab: RunningLab, programs: Programs, tunnels: Tunnels) -> int:
    """Dials it from shipper and hangs up; the serial of the certificate that a new tunnel showed, or 0 if none was
    made."""
    count = len(tunnels.serials)
    # In plaintext, where nothing listens, it is refused; in a tunnel nobody answers.
    client = programs.begin("shipper", (programs.at(DOUBLE), 80))
    wait_for(lambda: len(tunnels.serials) > count or _ended(client), "the core opens a tunnel to the double")
    client.close()
    return tunnels.serials[-1] if len(tunnels.serials) > count else 0


def _ended(client: socket.socket) -> bool:
    """Whether the other side has ended the connection."""
    try:
        client.setblocking(False)
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
