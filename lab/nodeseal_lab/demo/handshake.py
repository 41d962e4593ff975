"""A TLS client that has no certificate: what a pod shows of itself in a handshake, and which roots verify that."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from nodeseal_lab.demo.evidence import HBONE_PORT
from nodeseal_lab.demo.report import CheckFailed
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in

_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Root:
    """A trust anchor: a file with it, and its fingerprint."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Root:
        cert = x509.load_pem_x509_certificate(path.read_bytes())
        return cls(path, cert.fingerprint(hashes.SHA256()).hex())

    @property
    def short(self) -> str:
        """As people are shown it."""
        return self.sha256[:8]


@dataclass(frozen=True, slots=True)
class Shown:
    """The certificate that a pod has shown."""

    serial: str
    identity: str
    roots: tuple[Root, ...]
    """Those that verify it."""


def look(lab: Lab, observer: str, pod: str, roots: Iterable[Root]) -> Shown:
    """What `pod` shows a client in the pod `observer`: one handshake for the certificate, and one for each root, which
    is all that the client trusts then. Raises CheckFailed when the pod speaks no TLS."""
    address = str(lab.plan.pod(pod).named_address)

    def handshakes() -> Shown:
        der = _handshake(address, None)
        assert der is not None
        cert = x509.load_der_x509_certificate(der)
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (identity,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        verifying = tuple(root for root in roots if _handshake(address, root) is not None)
        return Shown(f"{cert.serial_number:x}", identity, verifying)

    try:
        return run_in(lab.plan.pod(observer).netns, handshakes)
    except OSError as error:
        raise CheckFailed(f"{pod} shows a certificate", expected="a handshake", seen=error) from error


def _handshake(address: str, root: Root | None) -> bytes | None:
    """The certificate; None: the root does not verify it. Without a root whatever is shown is taken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.check_hostname = False
    if root is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(root.path)
    with socket.create_connection((address, HBONE_PORT), timeout=_SECONDS) as connection:
        try:
            # The server asks for a certificate when this has ended, and refuses us then.
            with context.wrap_socket(connection) as tls:
                return tls.getpeercert(binary_form=True)
        except ssl.SSLCertVerificationError:
            return None
