"""The certificate service as a process of its own, and nodes that ask it over TLS."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from nodeseal.authority.creation import init_authority
from nodeseal.contracts.authority import (
    BUNDLE,
    CERTIFICATES,
    HEALTH,
    NODE,
    Bundle,
    Certificate,
    CertificateRequest,
    Health,
    Message,
    NodeCertificate,
    NodeRequest,
    ServiceOperation,
    ServiceRefusal,
    decode,
    encode,
)
from nodeseal.contracts.key_kind import KeyKind
from nodeseal_lab.processes import child_environment
from support.patience import PATIENCE, wait_for
from support.process import nodeseal

Key = ec.EllipticCurvePrivateKey

MESH = """\
trust_domain: example.org
workloads:
  - {name: web, namespace: default, service_account: web, node: node1, address: 10.77.1.10, netns: web, enrolled: true}
  - {name: idle, namespace: default, service_account: idle, node: node1, address: 10.77.1.11, netns: idle}
  - {name: db, namespace: default, service_account: db, node: node2, address: 10.77.2.10, netns: db, enrolled: true}
"""
WEB, IDLE, DB = (f"spiffe://example.org/ns/default/sa/{name}" for name in ("web", "idle", "db"))


def new_key() -> Key:
    """P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def csr_of(key: Any) -> str:
    """A request for this key, signed by it."""
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) else None
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
    return request.public_bytes(Encoding.PEM).decode()


class RefusedRequest(Exception):
    """The service's refusal."""

    def __init__(self, status: int, refusal: ServiceRefusal) -> None:
        super().__init__(f"{status} {refusal.word}: {refusal.detail}")
        self.status = status
        self.word = refusal.word
        self.refusal = refusal


@dataclass
class Asker:
    """A client of the service. `shown`: the node certificate that it shows, and its key."""

    port: int
    pin: str
    shown: tuple[str, Key] | None = None

    def connect(self, timeout: float = PATIENCE) -> http.client.HTTPSConnection:
        """A connection that has verified the service by its pin."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.shown is not None:
            certificate, key = self.shown
            with tempfile.NamedTemporaryFile() as file:
                file.write(certificate.encode())
                file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
                file.flush()
                context.load_cert_chain(file.name)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=timeout)
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        der = connection.sock.getpeercert(True)
        assert der is not None
        spki = (
            x509.load_der_x509_certificate(der)
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
        assert hashlib.sha256(spki).hexdigest() == self.pin
        return connection

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    def ask(self, operation: ServiceOperation[Any, Any], message: Message | None = None) -> Any:
        """The answer. Raises RefusedRequest."""
        body = encode(message) if message is not None else None
        status, _headers, data = self.send(operation.method, operation.path, body)
        if status == 200 or operation is HEALTH:
            return decode(data, operation.answer)
        raise RefusedRequest(status, decode(data, ServiceRefusal))

    def health(self) -> Health:
        """How the service is."""
        found: Health = self.ask(HEALTH)
        return found

    def bundle(self) -> Bundle:
        """The trust anchors."""
        found: Bundle = self.ask(BUNDLE)
        return found

    def join(self, node: str, token: str | None, key: Key | None = None) -> tuple[NodeCertificate, Key]:
        """Joins, or, without a token, renews."""
        key = key or new_key()
        node = node if token is not None else ""
        found: NodeCertificate = self.ask(NODE, NodeRequest(csr=csr_of(key), node=node, token=token))
        return found, key

    def joined(self, node: str, token: str) -> Asker:
        """As this node, from now on."""
        certificate, key = self.join(node, token)
        return Asker(self.port, self.pin, (certificate.certificate, key))

    def certificate(self, identity: str, csr: str | None = None, **more: Any) -> Certificate:
        """For a workload."""
        found: Certificate = self.ask(
            CERTIFICATES, CertificateRequest(identity=identity, csr=csr or csr_of(new_key()), **more)
        )
        return found


@dataclass
class Place:
    """Where a service has its CA, its mesh state and its own state."""

    root: Path

    @classmethod
    def make(
        cls,
        root: Path,
        mesh: str = MESH,
        made: datetime | None = None,
        kind: KeyKind = KeyKind.P256,
        **settings: Any,
    ) -> Place:
        """With a CA that was made now, or then, of this kind of keys; `settings` as in the configuration."""
        init_authority(root / "ca", trust_domain="example.org", kind=kind, now=made or datetime.now(UTC))
        (root / "mesh").mkdir()
        (root / "mesh" / "mesh.yaml").write_text(mesh)
        place = cls(root)
        place.configure(**settings)
        return place

    def configure(self, **settings: Any) -> None:
        """Writes the configuration."""
        whole = {"ca": "ca", "mesh": "mesh", "state": "state", "listen": ["127.0.0.1:0"], **settings}
        self.config.write_text(json.dumps(whole))  # which is YAML too

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.root / "ca.yaml"

    @property
    def state(self) -> Path:
        """The service's own."""
        return self.root / "state"

    def command(self, *words: str) -> Any:
        """What `nodeseal ca WORDS -o json` prints."""
        done = nodeseal("ca", *words, "--config", str(self.config), "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def token(self, node: str, ttl: str = "1h") -> str:
        """A fresh one."""
        found: str = self.command("token", "create", "--node", node, "--ttl", ttl)["token"]
        return found

    def audit(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        text = (self.state / "audit.jsonl").read_text()
        return [msgspec.json.decode(line) for line in text.splitlines()]

    def audited(self, **what: object) -> dict[str, Any]:
        """The line that has all of this, once it is there."""
        return wait_for(
            lambda: next((line for line in self.audit() if what.items() <= line.items()), None), f"audit of {what}"
        )


@dataclass
class Running:
    """A service's process."""

    process: subprocess.Popen[str]
    log: Path
    asker: Asker

    def kill(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(place: Place, *, active: bool = True, prefix: Sequence[str] = ()) -> Iterator[Running]:
    """The service, until the block ends. `active`: it issues, rather than stand by; `prefix`: the command that it is
    started by."""
    log = place.root / f"serve-{len(list(place.root.glob('serve-*')))}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "nodeseal", "ca", "serve", "--config", str(place.config)],
            stderr=file,
            text=True,
            env=child_environment(),
        )
    try:

        def said(pattern: str) -> str:
            def found() -> str | None:
                assert process.poll() is None, log.read_text()
                match = re.search(pattern, log.read_text())
                return match[1] if match is not None else None

            return wait_for(found, f"{pattern} in {log}")

        port, pin = int(said(r"listens on 127\.0\.0\.1:(\d+)")), said(r"SHA-256 ([0-9a-f]{64})")
        service = Running(process, log, Asker(port, pin))
        if active:
            wait_for(lambda: service.asker.health().state == "active", "the service issues")
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
