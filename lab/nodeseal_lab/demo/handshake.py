"""A TLS client that has no certificate: what a pod shows of itself in a handshake, and which roots verify that."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeseal.authority.anchors import read_anchors
from nodeseal_lab.demo.evidence import HBONE_PORT
from nodeseal_lab.demo.report import CheckFailed
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in

Certificate = tuple[str, str]
"""Its serial number in hexadecimal, and its id."""

_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Root:
    """A trust anchor: a file with it, and its fingerprint."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Root:
        """Raises AuthorityError."""
        return cls(path, read_anchors(path)[0].key)

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
    """What `pod` shows a client in the pod `observer`: a handshake for each root, which is all that the client trusts
    then. Raises CheckFailed when the pod speaks no TLS, or shows what none of the roots verifies."""
    address = str(lab.plan.pod(pod).named_address)

    def handshakes() -> dict[Root, Certificate]:
        found = {root: _handshake(address, root) for root in roots}
        return {root: certificate for root, certificate in found.items() if certificate is not None}

    try:
        found = run_in(lab.plan.pod(observer).netns, handshakes)
    except OSError as error:
        raise CheckFailed(f"{pod} shows a certificate", expected="a handshake", seen=error) from error
    if not found:
        raise CheckFailed(f"a root verifies {pod}", expected=[root.short for root in roots], seen="none of them does")
    serial, identity = next(iter(found.values()))
    return Shown(serial, identity, tuple(found))


def _handshake(address: str, root: Root) -> Certificate | None:
    """None: the root does not verify what is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.check_hostname = False
    context.load_verify_locations(root.path)
    with socket.create_connection((address, HBONE_PORT), timeout=_SECONDS) as connection:
        try:
            # The server asks for a certificate when this has ended, and refuses us then.
            with context.wrap_socket(connection) as tls:
                shown: dict[str, Any] = tls.getpeercert() or {}
        except ssl.SSLCertVerificationError:
            return None
    ids = [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    return str(shown.get("serialNumber", "")).lower().lstrip("0"), ", ".join(ids)
