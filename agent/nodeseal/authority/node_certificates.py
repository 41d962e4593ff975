"""Node certificates: what a node proves itself with after it has joined.

Their SPIFFE id is `spiffe://<trust domain>/node/<name>`, which is never a workload's (nodeseal.mesh.spiffe), they are
for TLS clients only, and no workload trusts what signs them. So a node certificate is of no use towards workloads.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeseal.authority.certificates import authority_key_identifier, leaf_builder
from nodeseal.authority.rules import UNREADABLE
from nodeseal.authority.signer import CLOCK_SKEW
from nodeseal.authority.signing_key import LeafKey
from nodeseal.authority.state_keys import OwnKey
from nodeseal.mesh.spiffe import SpiffeIdError, check_segment, split

_PATH = "/node/"


@dataclass(frozen=True, slots=True)
class ShownNode:
    """What a node certificate says."""

    node: str
    trust_domain: str
    serial: str
    """In lower hexadecimal."""
    not_before: datetime
    not_after: datetime


def node_identity(trust_domain: str, node: str) -> str:
    """The SPIFFE id of a node. Raises SpiffeIdError for a name that cannot be in one."""
    check_segment(node, "node")
    identity = f"spiffe://{trust_domain}{_PATH}{node}"
    split(identity)
    return identity


def sign_node(
    signer: OwnKey, trust_domain: str, node: str, key: LeafKey, *, lifetime: timedelta, now: datetime
) -> x509.Certificate:
    """A certificate for this node and key. Raises SpiffeIdError."""
    now = now.astimezone(UTC).replace(microsecond=0)
    uri = node_identity(trust_domain, node)
    return signer.key.sign(
        leaf_builder(uri, key, [ExtendedKeyUsageOID.CLIENT_AUTH], now - CLOCK_SKEW, now + lifetime)
        .issuer_name(signer.certificate.subject)
        .add_extension(authority_key_identifier(signer.certificate), critical=False)
    )


@functools.lru_cache(maxsize=4096)
def read_node(der: bytes) -> ShownNode:
    """Of a certificate that TLS has verified by `nodes.pem`, but for its time. Raises ValueError for one that is no
    node's."""
    try:
        cert = x509.load_der_x509_certificate(der)
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (*UNREADABLE, x509.ExtensionNotFound) as error:
        raise ValueError(str(error)) from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"{len(uris)} URIs")
    trust_domain, path = split(uris[0])
    node = path.removeprefix(_PATH)
    if not path.startswith(_PATH) or "/" in node:
        raise SpiffeIdError(f"{uris[0]} is no node's")
    return ShownNode(node, trust_domain, f"{cert.serial_number:x}", cert.not_valid_before_utc, cert.not_valid_after_utc)
