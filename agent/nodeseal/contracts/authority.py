"""What agents and the certificate service (`nodeseal ca serve`) say to each other: JSON over HTTPS.

TLS is of version 1.3. The service's key is long-lived: agents know it by the SHA-256 over its SubjectPublicKeyInfo,
which `nodeseal ca token create` prints, and look at nothing else of its certificate; or they are given that certificate
as an anchor, and verify it for the name `nodeseal-ca`. So a node can join when every other certificate has expired,
too.

A node proves itself with a token the first time, and with its node certificate, as a TLS client, from then on. A node
certificate says `spiffe://<trust domain>/node/<name>`, is for clients only, and is signed by a CA that no workload
trusts. It is shown alone: the service knows what is above it.

On Kubernetes there are no node certificates. Each request carries the token that the kubelet projects into the agent's
pod, for the audience AUDIENCE, as `Authorization: Bearer TOKEN` (RFC 6750), and says the node's name; the service asks
the API server whose it is. The service's own certificate is an X.509-SVID of the CA then: agents verify it by the
mesh's trust anchors, and it has the id `spiffe://<trust domain>/nodeseal/certificate-service`.

Both ends tolerate each other's version: fields that are missing have their defaults, those that are unknown are passed
over. Certificates and requests are PEM. Fingerprints are SHA-256 in lower hexadecimal, serial numbers lower hexadecimal
without leading zeros. Times are RFC 3339 with a zone.

What fails is answered with a ServiceRefusal, whatever the status. An agent that was given several addresses goes on to
the next one for a `standby`, or when nobody answers; it waits as it is told for `busy` and `rate`. An answer that was
lost is not asked for again: a key is certified once, so a new attempt has a new key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from nodeseal.mesh.spiffe import PathId

SERVER_NAME = "nodeseal-ca"
"""The DNS name in the service's own certificate, whatever its address."""
SERVICE_PATH = "/nodeseal/certificate-service"
"""Of its SPIFFE id on Kubernetes, which is none of a workload's."""
DEFAULT_PORT = 15018
"""Where the service listens, unless it is told otherwise."""

AUDIENCE = "nodeseal-ca"
"""For whom the token of an agent's pod is, unless both ends are told otherwise."""
TRUST_BUNDLE, BUNDLE_KEY = "nodeseal-trust-bundle", "bundle.pem"
"""The ConfigMap that has the trust anchors on Kubernetes, unless both ends are told otherwise, and the key in it."""
BEARER = "Bearer "
"""What the header Authorization begins with."""

BODY_MAX = 64 * 1024
"""Bytes of a request's body."""
ANSWER_MAX = 4 * 1024 * 1024
"""Bytes of an answer: what an agent reads at most."""

TOKEN_PREFIX = "nodeseal-join-"  # noqa: S105 (by which a token that leaked is found)
"""A token is this and 43 characters of base64url: 256 random bits."""

FIRST, RENEWAL = "first", "renewal"
"""Reasons for which a certificate is asked for; others may come, and are treated as FIRST."""

Csr = Annotated[str, Meta(min_length=1, max_length=16 * 1024)]
Short = Annotated[str, Meta(max_length=256)]
Time = Annotated[datetime, Meta(tz=True)]


class Message(Struct, frozen=True, kw_only=True):
    """What all of them have in common: once made, they do not change."""


class NodeRequest(Message, frozen=True):
    """Asks for a node certificate. With `node` and `token`: to join. With neither, and with the present node
    certificate as the TLS client's: its renewal. The key is a fresh one, P-256, P-384 or Ed25519."""

    csr: Csr
    """PKCS 10 for the node's new key. Nothing but the key is taken of it."""
    node: Short = ""
    """The node's name in the mesh state."""
    token: Short | None = None
    """As `nodeseal ca token create` printed it."""


class NodeCertificate(Message, frozen=True):
    """A node certificate."""

    node: str
    identity: str
    """`spiffe://<trust domain>/node/<name>`"""
    trust_domain: str
    """The only one that the service issues in."""
    certificate: str
    """The certificate alone: the node shows no more."""
    serial: str
    issued: Time
    """By the service's clock."""
    not_before: Time
    """A little before it was issued, for clocks that are behind."""
    not_after: Time


class CertificateRequest(Message, frozen=True):
    """Asks for the certificate of a workload on the node that asks."""

    identity: Annotated[str, Meta(max_length=512)]
    """Its SPIFFE id."""
    csr: Csr
    """PKCS 10 for the workload's fresh key: P-256, P-384 or Ed25519. Nothing but the key is taken of it."""
    reason: Short = FIRST
    """ "first" or "renewal"."""
    expires: Time | None = None
    """When the present certificate ends, of a renewal: those near their end are signed first."""
    node: Short = ""
    """The node's name, where it proves itself by its pod's token: it has to be the token's."""


class Certificate(Message, frozen=True):
    """A workload's certificate."""

    identity: str
    chain: str
    """The leaf, then the intermediates."""
    serial: str
    """The leaf's."""
    issued: Time
    """By the service's clock. Half of the way from here to `not_after` is the time to renew it."""
    not_before: Time
    """A little before it was issued, for clocks that are behind."""
    not_after: Time
    anchor: str
    """The fingerprint of the trust anchor that it is verified by."""
    bundle: str = ""
    """The tag of the present Bundle: fetch it when it is another than the one that is known."""


class Bundle(Message, frozen=True):
    """The trust anchors by which workloads' certificates are verified. `tag` is the answer's ETag as well, so that
    If-None-Match saves the rest."""

    trust_domain: str
    anchors: str
    """One or more certificates."""
    tag: str
    refresh_seconds: int = 300
    """Ask again after so long."""
    anchor: str = ""
    """The fingerprint of the one by which the service issues now; empty: it does not say."""


class RefusedCount(Message, frozen=True):
    """How many requests were refused with a word since the service started."""

    word: str
    count: int = 0


class CaCertificateEnd(Message, frozen=True):
    """Until when a certificate of the CA is valid."""

    role: str
    """ "intermediate" or "root"."""
    not_after: Time


class Health(Message, frozen=True):
    """Whether the service works. The status is 200 when it issues, and 503 when not.

    Anybody is told the state, since when it is that, the trust domain, and until when the CA is valid. What follows is
    told to whoever asks on the service's own machine, or shows a node certificate."""

    state: str
    """ "active"; "standby": another process has the store, and this one takes over when it ends; or "impaired", see
    `problems`."""
    since: Time | None = None
    """Since when it issues, or stands by."""
    trust_domain: str = ""
    certificates: list[CaCertificateEnd] = []
    """The intermediate by which it issues, what is above it, and their root."""
    version: str = ""
    problems: list[str] = []
    """One line each: what is wrong, where, and what to do."""
    warnings: list[str] = []
    """The same of what ends soon."""
    issued: int = 0
    """Certificates since the service started; so are the following."""
    refused: list[RefusedCount] = []
    waiting: int = 0
    """Requests that wait to be signed now."""
    nodes: int = 0
    """Nodes with a certificate that has not expired."""
    issued_last_hour: int = 0
    """Certificates, nodes' own included, whoever issued them; so is the next."""
    valid: int = 0
    """Those that have not expired."""

    def for_strangers(self) -> Health:
        """What anybody is told."""
        return Health(
            state=self.state, since=self.since, trust_domain=self.trust_domain, certificates=self.certificates
        )


class Probe(Message, frozen=True):
    """For probes, which look at the status alone: 200 or 503."""

    why: str = ""
    """Why not, one line."""


ACTIVE, STANDBY, IMPAIRED = "active", "standby", "impaired"
"""The states of Health."""


class ServiceRefusal(Message, frozen=True):
    """Why a request was not carried out. A word that is unknown is treated by the answer's status: 4xx is refused for
    good, 429 and 5xx may be tried again."""

    word: str
    """One of those below; a newer service may have others."""
    detail: str = ""
    """One line, for people: what, where, and what to do."""
    retry_after_seconds: float | None = None
    """When to try again, if that can help."""


class ServiceWord(StrEnum):
    """Why the service refuses a request."""

    MALFORMED = "malformed"
    """The body is not what the operation asks for."""
    TOO_LARGE = "too-large"
    """The body has more than 64 KiB."""
    UNKNOWN_OPERATION = "unknown-operation"
    SLOW = "slow"
    """The request did not arrive in time."""
    CSR_UNREADABLE = "csr-unreadable"
    """It is no request in PEM form."""
    CSR_KEY = "csr-key"
    """Its key is none of P-256, P-384 and Ed25519."""
    CSR_SIGNATURE = "csr-signature"
    """It is not signed by its own key."""
    KEY_USED = "key-used"
    """Its key was certified before. Each certificate has a fresh key."""
    TOKEN_UNKNOWN = "token-unknown"  # noqa: S105
    TOKEN_USED = "token-used"  # noqa: S105
    TOKEN_EXPIRED = "token-expired"  # noqa: S105
    TOKEN_REVOKED = "token-revoked"  # noqa: S105
    TOKEN_OF_ANOTHER_NODE = "token-of-another-node"  # noqa: S105
    POD_TOKEN_UNTAKEN = "pod-token-untaken"  # noqa: S105
    """The API server does not take the token of the agent's pod for this service: it has expired, is for another
    audience, or is none."""
    POD_TOKEN_OF_ANOTHER_ACCOUNT = "pod-token-of-another-account"  # noqa: S105
    """It is of another service account than the agents'."""
    POD_TOKEN_UNBOUND = "pod-token-unbound"  # noqa: S105
    """It is bound to no pod, or says no node."""
    POD_GONE = "pod-gone"
    """The pod that it is bound to is no more, or is bound to another node."""
    REVIEW_UNAVAILABLE = "review-unavailable"
    """The API server does not say whose the token is, or which pods there are."""
    NODE_UNPROVEN = "node-unproven"
    """The operation needs a node certificate, or on Kubernetes the token of the agent's pod, and none was shown, or one
    that is not the service's."""
    NODE_EXPIRED = "node-expired"
    """The node certificate has expired: the node was away too long and needs a new token."""
    IDENTITY_MALFORMED = "identity-malformed"
    """It is no SPIFFE id of a workload."""
    IDENTITY_OF_ANOTHER_DOMAIN = "identity-of-another-domain"
    IDENTITY_NOT_ON_NODE = "identity-not-on-node"
    """The mesh state has no workload with that identity on the node; on Kubernetes: no pod with that service account is
    bound to it."""
    IDENTITY_NOT_ENROLLED = "identity-not-enrolled"
    """It has one, and does not want it to be enrolled."""
    IDENTITY_REVOKED = "identity-revoked"
    """The mesh state revokes it: `nodeseal revoke list`."""
    NODE_REVOKED = "node-revoked"
    """The mesh state revokes the node that asks."""
    NODE_CERTIFICATE_REVOKED = "node-certificate-revoked"
    """The mesh state revokes the node certificate that was shown: the node may join anew."""
    RATE = "rate"
    """The node, or the address, has asked too often."""
    BUSY = "busy"
    """Too much waits to be signed."""
    STANDBY = "standby"
    """Another process does the work."""
    MESH_STATE_UNKNOWN = "mesh-state-unknown"
    """The service could not read the mesh state yet."""
    AUTHORITY_UNABLE = "authority-unable"
    """The CA cannot sign now, as when its intermediate has expired."""
    HANDSHAKE = "handshake"
    """TLS failed, so that nobody was answered: in counts and in the audit log only."""
    INTERNAL = "internal"
    """The service failed; its log says how."""


STATUSES: Mapping[ServiceWord, int] = MappingProxyType(
    {
        ServiceWord.MALFORMED: 400,
        ServiceWord.TOO_LARGE: 413,
        ServiceWord.UNKNOWN_OPERATION: 404,
        ServiceWord.SLOW: 408,
        ServiceWord.CSR_UNREADABLE: 400,
        ServiceWord.CSR_KEY: 400,
        ServiceWord.CSR_SIGNATURE: 400,
        ServiceWord.KEY_USED: 409,
        ServiceWord.TOKEN_UNKNOWN: 401,
        ServiceWord.TOKEN_USED: 401,
        ServiceWord.TOKEN_EXPIRED: 401,
        ServiceWord.TOKEN_REVOKED: 401,
        ServiceWord.TOKEN_OF_ANOTHER_NODE: 403,
        ServiceWord.POD_TOKEN_UNTAKEN: 401,
        ServiceWord.POD_TOKEN_OF_ANOTHER_ACCOUNT: 403,
        ServiceWord.POD_TOKEN_UNBOUND: 403,
        ServiceWord.POD_GONE: 403,
        ServiceWord.REVIEW_UNAVAILABLE: 503,
        ServiceWord.NODE_UNPROVEN: 401,
        ServiceWord.NODE_EXPIRED: 401,
        ServiceWord.IDENTITY_MALFORMED: 400,
        ServiceWord.IDENTITY_OF_ANOTHER_DOMAIN: 403,
        ServiceWord.IDENTITY_NOT_ON_NODE: 403,
        ServiceWord.IDENTITY_NOT_ENROLLED: 403,
        ServiceWord.IDENTITY_REVOKED: 403,
        ServiceWord.NODE_REVOKED: 403,
        ServiceWord.NODE_CERTIFICATE_REVOKED: 401,
        ServiceWord.RATE: 429,
        ServiceWord.BUSY: 503,
        ServiceWord.STANDBY: 503,
        ServiceWord.MESH_STATE_UNKNOWN: 503,
        ServiceWord.AUTHORITY_UNABLE: 503,
        ServiceWord.HANDSHAKE: 400,
        ServiceWord.INTERNAL: 500,
    }
)
"""The HTTP status that goes with each."""

Q = TypeVar("Q")
A = TypeVar("A", bound=Message)
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class ServiceOperation(Generic[Q, A]):
    """`request`: the body, None for none; `answer`: what a 200 has; `proof`: what the client proves itself with, ""
    for nothing; `summary`: one sentence for the reference."""

    method: Literal["GET", "POST"]
    path: str
    request: type[Q]
    answer: type[A]
    proof: str
    summary: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


NODE = ServiceOperation(
    "POST",
    "/v1/node",
    NodeRequest,
    NodeCertificate,
    "a token, or a node certificate",
    "A node joins, or renews its node certificate.",
)
CERTIFICATES = ServiceOperation(
    "POST",
    "/v1/certificates",
    CertificateRequest,
    Certificate,
    "a node certificate, or the token of the agent's pod",
    "The certificate of a workload on the node.",
)
BUNDLE = ServiceOperation("GET", "/v1/bundle", type(None), Bundle, "", "The trust anchors.")
HEALTH = ServiceOperation("GET", "/v1/health", type(None), Health, "", "Whether the service works.")
READY = ServiceOperation("GET", "/v1/ready", type(None), Probe, "", "Whether it issues: 200 or 503, for a probe.")
ALIVE = ServiceOperation("GET", "/v1/alive", type(None), Probe, "", "Whether its process answers at all.")

OPERATIONS: tuple[ServiceOperation[Any, Any], ...] = (NODE, CERTIFICATES, BUNDLE, HEALTH, READY, ALIVE)


def service_id(trust_domain: str) -> PathId:
    """What the service shows on Kubernetes."""
    return PathId(trust_domain, SERVICE_PATH)


def encode(message: Message) -> bytes:
    """As a body."""
    return msgspec.json.encode(message)


def decode(body: bytes, kind: type[M]) -> M:
    """A body that a stranger sent. Raises ValueError, whose text is one line that says what is wrong and where."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
