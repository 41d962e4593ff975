"""A SPIFFE bundle endpoint that a test plays: an HTTPS server in threads, which answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nodeseal.authority.signer import Signer
from nodeseal.identity.bundle_endpoint import fetch
from nodeseal.mesh.federated import BundleEndpoint
from nodeseal.mesh.spiffe import parse_identity

Behaviour = Callable[[ssl.SSLSocket], None]


def bundle_of(*pems: str, sequence: int | None = None, hint: int | None = None) -> bytes:
    """A SPIFFE bundle of these certificates."""
    keys = []
    for pem in pems:
        der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
        keys.append({"use": "x509-svid", "kty": "EC", "x5c": [b64encode(der).decode()]})
    document: dict[str, Any] = {"keys": keys}
    if sequence is not None:
        document["spiffe_sequence"] = sequence
    if hint is not None:
        document["spiffe_refresh_hint"] = hint
    return json.dumps(document).encode()


def fetched(endpoint: BundleEndpoint, anchors: str = "") -> bytes:
    """What an agent gets of it. Raises BundleEndpointError."""

    async def whole() -> bytes:
        try:
            return await fetch(endpoint, anchors)
        finally:
            await asyncio.sleep(0.05)  # the loop lets go of the connection before it ends itself

    return asyncio.run(whole())


def answering(body: bytes, status: str = "200 OK", *heads: str) -> Behaviour:
    """Answers with this."""
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *heads))
    return lambda connection: connection.sendall(f"{head}\r\n\r\n".encode() + body)


def svid(ca: Path, identity: str, directory: Path) -> Path:
    """A file with an X.509-SVID of this CA directory, what it is signed by, and its key."""
    signer, key = Signer.load(ca, datetime.now(UTC)), ec.generate_private_key(ec.SECP256R1())
    leaf = signer.sign(parse_identity(identity), key.public_key(), lifetime=timedelta(hours=1), now=datetime.now(UTC))
    return _write(directory / "svid.pem", key, leaf, *signer.chain)


def web_certificate(directory: Path, host: str) -> Path:
    """A file with a certificate for this host (a name or an address), signed by itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    try:
        shown: x509.GeneralName = x509.IPAddress(ip_address(host))
    except ValueError:
        shown = x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([shown]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _write(directory / "web.pem", key, certificate)


def spare_certificate(directory: Path, host: str) -> tuple[Path, Path]:
    """A file with a certificate for this address and its key, and one with the CA that issued it. Neither says by which
    keys (RFC 5280, 4.2.1.1), as it is in many clusters."""
    ca_key, key, now = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
        datetime.now(UTC),
    )
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("ca", "web"))

    def begin(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return x509.CertificateBuilder(
            issuer, name, public, x509.random_serial_number(), now - timedelta(hours=1), now + timedelta(hours=1)
        )

    basic = x509.BasicConstraints(ca=True, path_length=None)
    ca = begin(issuer, ca_key.public_key()).add_extension(basic, critical=True).sign(ca_key, hashes.SHA256())
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))])
    certificate = begin(subject, key.public_key()).add_extension(names, critical=False).sign(ca_key, hashes.SHA256())
    (directory / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    return _write(directory / "spare.pem", key, certificate), directory / "ca.pem"


def _write(path: Path, key: ec.EllipticCurvePrivateKey, *certificates: x509.Certificate) -> Path:
    private = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    return path


class BundleServer:
    """Listens on an address until it is closed. `behaviour` and the certificate may be changed at any time."""

    def __init__(self, certificate: Path, behaviour: Behaviour, address: str = "127.0.0.1") -> None:
        self.behaviour = behaviour
        self.requests: list[str] = []
        """The first line of each."""
        self.connected: set[threading.Thread] = set()
        self.show(certificate)
        self._listener = socket.create_server((address, 0))
        self._closed = threading.Event()
        host, port = self._listener.getsockname()[:2]
        self.url = f"https://{host}:{port}/bundle.json"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def show(self, certificate: Path, highest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> None:
        """Another certificate for new connections."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        if highest is not ssl.TLSVersion.MAXIMUM_SUPPORTED:
            context.minimum_version = highest
            context.maximum_version = highest
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        self._context = context

    def close(self) -> None:
        """Nobody is answered any more."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def __enter__(self) -> BundleServer:
        return self

    def __exit__(self, *_rest: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(accepted,), daemon=True)
            self.connected.add(thread)
            thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        try:
            self._answer(accepted)
        finally:
            self.connected.discard(threading.current_thread())

    def _answer(self, accepted: socket.socket) -> None:
        accepted.settimeout(30)
        with (
            contextlib.suppress(OSError),
            accepted,
            self._context.wrap_socket(accepted, server_side=True) as connection,
        ):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            self.requests.append(head.partition(b"\r\n")[0].decode())
            self.behaviour(connection)

    def hang(self, _connection: ssl.SSLSocket) -> None:
        """A behaviour: says nothing until the server is closed."""
        self._closed.wait(60)

    def trickle(self, connection: ssl.SSLSocket) -> None:
        """A behaviour: a byte now and then, for ever."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not self._closed.wait(0.05):
            connection.sendall(b" ")
