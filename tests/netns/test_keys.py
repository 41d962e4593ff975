"""Workloads' private keys on nodes that run: of which kind they are, and where they are not."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import SignatureAlgorithmOID

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signing_key import kind_of
from nodeseal.contracts.key_kind import KeyKind
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import TRUST_DOMAIN
from support.connection import echoes
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.memory import Mapping, numbers, places
from support.patience import PATIENCE, wait_for
from support.peer import tls_context
from support.programs import Programs

SIGNATURES = {
    KeyKind.P256: SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    KeyKind.P384: SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    KeyKind.ED25519: SignatureAlgorithmOID.ED25519,
}

HANDSHAKES = {
    KeyKind.P256: "ecdsa_secp256r1_sha256",
    KeyKind.P384: "ecdsa_secp384r1_sha384",
    KeyKind.ED25519: "ed25519",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("keys"), settings={"certificate_lifetime": "16s"}) as lab:
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


def private_number(agent: int, public: ec.EllipticCurvePublicKey) -> bytes | None:
    """The private key of a public one, if it is in the agent's protected memory: 32 bytes, the first the highest."""
    for number in numbers(agent, 32):
        with contextlib.suppress(ValueError):
            made = ec.derive_private_key(int.from_bytes(number, "big"), ec.SECP256R1())
            if made.public_key() == public:
                return number
    return None


def test_key_is_nowhere_once_its_certificate_was_renewed(lab: RunningLab, programs: Programs, tmp_path: Path) -> None:
    """The whole memory of agent and core is read, which is more than a core dump has."""
    agent, core = lab.agent_pid("node2"), lab.core_pid("node2")

    def shown() -> ec.EllipticCurvePublicKey:
        public = presented(lab, programs, "pipeline", tmp_path).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return public

    def found() -> tuple[ec.EllipticCurvePublicKey, list[bytes], dict[int, list[Mapping]]] | None:
        public = shown()
        if (number := private_number(agent, public)) is None:
            return None
        # In PEM the number begins 16 characters before the end of a line.
        encoded = base64.b64encode(number)
        texts = [number, number[::-1], encoded[:16], encoded[16:40]]
        held = {pid: places(pid, *texts) for pid in (agent, core)}
        return (public, texts, held) if shown() == public else None

    # Again, if it was renewed meanwhile.
    public, texts, held = wait_for(found, "the key of the certificate that is shown is found in the agent")
    for where in held.values():
        assert where, "who uses it has it"
        assert all(one.protected for one in where), f"only in what is locked and not dumped: {where}"

    def retired() -> bool:
        return shown() != public

    wait_for(retired, "pipeline has another key")
    wait_for(lambda: not places(agent, *texts), "the agent has nothing left of the key")
    wait_for(lambda: not places(core, *texts), "the core has nothing left of the key")


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


def test_cas_and_workloads_of_other_kinds_talk_to_those_of_p256(
    lab: RunningLab, programs: Programs, tmp_path: Path
) -> None:
    """Every node has the root of the lab, which is P-256, and those of a CA of each other kind."""
    directories = {KeyKind.P256: lab.directory / "ca"}
    for kind in (KeyKind.P384, KeyKind.ED25519):
        directories[kind] = tmp_path / kind.value
        init_authority(directories[kind], trust_domain=TRUST_DOMAIN, kind=kind, now=datetime.now(UTC))
    every = "".join((directory / "root.pem").read_text() for directory in directories.values())
    for directory in directories.values():
        (directory / "root.pem").write_text(every)

    def use(node: str, pod: str, kind: KeyKind) -> None:
        lab.restart_agent(node, ca=str(directories[kind]), certificate_key=kind.value)

        def shown() -> bool:
            cert = presented(lab, programs, pod, tmp_path)
            return (kind_of(cert.public_key()), cert.signature_algorithm_oid) == (kind.value, SIGNATURES[kind])

        wait_for(shown, f"{pod} has a key of {kind} that such a CA has signed")

    def signature(source: str, address: tuple[str, int]) -> str:
        """Of the peer, in the handshake of the tunnel that a connection uses: it may be older than the connection."""
        with contextlib.closing(programs.dial(source, address)) as client:
            assert echoes(client)
            found: str = lab.outbound(client)["signature"]
            return found

    server, back = programs.serve("pipeline"), programs.serve("siem")
    use("node2", "pipeline", KeyKind.P256)
    for kind in (KeyKind.P384, KeyKind.ED25519):
        use("node1", "siem", kind)
        wait_for(lambda: signature("siem", server.address) == HANDSHAKES[KeyKind.P256], "a tunnel to pipeline")
        wait_for(lambda kind=kind: signature("pipeline", back.address) == HANDSHAKES[kind], f"a tunnel to {kind}")
