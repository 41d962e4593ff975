"""Workloads' private keys on nodes that run: of which kind they are, and where they are not."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nodeseal_lab.namespaces import run_in
from support.connection import echoes
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.peer import tls_context
from support.programs import Programs


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("keys"), settings={"certificate_lifetime": "6s"}) as lab:
        yield lab


def presented(lab: RunningLab, programs: Programs, pod: str, directory: Path) -> x509.Certificate:
    """The certificate that the pod's core shows to a peer."""
    context = tls_context(lab, ssl.PROTOCOL_TLS_CLIENT, "shipper", directory)

    def connect() -> socket.socket:
        return socket.create_connection((programs.at(pod), HBONE_PORT), timeout=PATIENCE)

    # From the node: the pod's own connection to this port would be refused.
    with run_in(lab.lab.plan.node("node1").netns, connect) as raw, context.wrap_socket(raw) as tunnel:
        shown = tunnel.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def test_nodes_with_other_kinds_of_keys_talk_to_each_other(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    server = programs.serve("pipeline")
    lab.restart_agent("node1", certificate_key="ed25519")
    lab.restart_agent("node2", certificate_key="p384")

    def renewed() -> bool:
        public = presented(lab, programs, "pipeline", tmp_path).public_key()
        return isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP384R1)

    wait_for(renewed, "pipeline has a key of P-384")

    def is_ed25519() -> bool:
        return isinstance(presented(lab, programs, "siem", tmp_path).public_key(), ed25519.Ed25519PublicKey)

    wait_for(is_ed25519, "siem has a key of Ed25519")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    assert lab.outbound(client)["mtls"]
