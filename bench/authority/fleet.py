"""A fleet that is about to start: its CA and mesh state, a certificate for each node, and a request for each workload.

All keys are made before, so that the clients' keys are not what is measured.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nodeseal.authority.creation import init_authority
from nodeseal.authority.node_certificates import sign_node
from nodeseal.authority.state_keys import StateKeys, prepare
from nodeseal.contracts.authority import CERTIFICATES, CertificateRequest, encode

TRUST_DOMAIN = "example.org"


@dataclass(frozen=True)
class Node:
    """`requests`: whole HTTP requests, one for each of its workloads; `context`: TLS with its node certificate."""

    name: str
    context: ssl.SSLContext
    requests: list[bytes]


@dataclass(frozen=True)
class Fleet:
    """In `directory`: ca/, mesh/, and the service's configuration."""

    directory: Path
    nodes: list[Node]

    @property
    def config(self) -> Path:
        """The service's configuration."""
        return self.directory / "ca.yaml"


def make_fleet(directory: Path, nodes: int, identities: int) -> Fleet:
    """So many nodes with so many identities each."""
    now = datetime.now(UTC)
    init_authority(directory / "ca", trust_domain=TRUST_DOMAIN, now=now)
    (directory / "mesh").mkdir()
    (directory / "mesh" / "mesh.json").write_text(json.dumps(_mesh(nodes, identities)))
    settings = {"ca": "ca", "mesh": "mesh", "state": "state", "listen": ["127.0.0.1:0"]}
    (directory / "ca.yaml").write_text(json.dumps(settings))
    prepare(directory / "state")
    keys = StateKeys.load(directory / "state", TRUST_DOMAIN, now)
    with ProcessPoolExecutor() as pool:
        requests = list(pool.map(_requests, range(nodes), [identities] * nodes, chunksize=8))
    return Fleet(
        directory,
        [Node(_node(one), _context(directory, keys, _node(one), now), requests[one]) for one in range(nodes)],
    )


def _mesh(nodes: int, identities: int) -> dict[str, object]:
    return {
        "trust_domain": TRUST_DOMAIN,
        "workloads": [
            {
                "name": f"{_node(node)}-{one}",
                "namespace": "bench",
                "service_account": f"{_node(node)}-{one}",
                "node": _node(node),
                "address": f"10.{node // 250}.{node % 250}.{one + 1}",
                "netns": "bench",
                "enrolled": True,
            }
            for node in range(nodes)
            for one in range(identities)
        ],
    }


def _node(number: int) -> str:
    return f"node{number}"


def _requests(node: int, identities: int) -> list[bytes]:
    return [_request(f"spiffe://{TRUST_DOMAIN}/ns/bench/sa/{_node(node)}-{one}") for one in range(identities)]


def _request(identity: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    body = encode(CertificateRequest(identity=identity, csr=csr.public_bytes(Encoding.PEM).decode()))
    head = (
        f"{CERTIFICATES} HTTP/1.1\r\nHost: ca\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _context(directory: Path, keys: StateKeys, name: str, now: datetime) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    cert = sign_node(keys.nodes, TRUST_DOMAIN, name, key.public_key(), lifetime=timedelta(days=1), now=now)
    both = directory / "node.pem"
    both.write_bytes(
        cert.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(both)
    both.unlink()
    return context


def shares(nodes: list[Node], count: int) -> Iterator[list[Node]]:
    """The nodes in so many parts."""
    for one in range(count):
        yield nodes[one::count]
