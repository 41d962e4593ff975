"""The connections of a node's workloads, and the peers that were refused, as the local API and `nodeseal connections`
tell them; see nodeseal.contracts.rows."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nodeseal.contracts.rows import Parameters, Row


class ConnectionRow(Row, frozen=True):
    """A connection of a workload of this node: through a core, or past it and why.

    Where both ends are workloads of this node, each has a row.
    """

    id: int | None = None
    """Its number in the core; of a native one, the kernel's of its socket; null for others past the core."""
    core: int | None = None
    """The core's generation; null past the core."""
    workload: str | None = None
    """The workload of this node, "namespace/name"; null for one that was removed."""
    direction: str = ""
    """ "outbound": the workload dialled; "inbound": it was dialled."""
    source: str = ""
    """Address and port of the application that dialled."""
    source_workload: str | None = None
    """Who is at that address; null for nobody of the mesh state."""
    destination: str = ""
    """Address and port that it dialled."""
    destination_workload: str | None = None
    """The workload or service at that address."""
    endpoint: str = ""
    """Address and port that the connection was made to: of a service, the endpoint that was picked."""
    endpoint_workload: str | None = None
    state: str = ""
    """ "deciding", "connecting", "open" or "closed"."""
    mtls: bool = False
    """Its bytes cross the wire in a TLS tunnel."""
    peer: str | None = None
    """The SPIFFE id that the other side has proven."""
    tls: str | None = None
    """Protocol and cipher suite as negotiated."""
    group: str | None = None
    """The group of the key exchange, "X25519MLKEM768"; null without TLS. So is the next."""
    signature: str | None = None
    """The algorithm by which the peer has signed the handshake, "ecdsa_secp256r1_sha256"."""
    anchor: str | None = None
    """The trust anchor that the peer was verified by: the first 32 digits of its fingerprint; null without TLS."""
    reason: str | None = None
    """Without mutual TLS: why, a word of docs/words.md. Closed: what ended it, if it failed."""
    bytes_sent: int | None = None
    """By the application that dialled; null when the kernel does not say."""
    bytes_received: int | None = None
    """The same the other way."""
    age_seconds: float | None = None
    """Since it was accepted, or a native one was established; null for others past the core."""
    native: bool = False
    """It goes from kernel to kernel, with nothing of nodeseal on its way, and was allowed to."""
    closed_seconds: float | None = None
    """Since it was closed; null while it is open."""


class RefusedRow(Row, frozen=True):
    """Refusals of one source that have the same kind and reason, of the last day."""

    workload: str | None = None
    """The workload of this node, "namespace/name"; null for one that was removed."""
    direction: str = ""
    """ "inbound": a peer was refused; "outbound": a handshake that the workload began came to nothing."""
    kind: str = ""
    """ "handshake": TLS failed; "stream": a request in a tunnel; "plaintext"."""
    status: int | None = None
    """Of a stream: the HTTP status that it was answered with."""
    source: str = ""
    """The address that they came from."""
    source_workload: str | None = None
    destination: str = ""
    """Address and port of the last one."""
    destination_workload: str | None = None
    peer: str | None = None
    """Of a stream: the SPIFFE id that the peer has proven."""
    reason: str = ""
    """A word of docs/words.md, or a sentence."""
    presented: str | None = None
    """Of a handshake: what the certificate that was refused says of whom it is for: the peer's, which nobody has
    verified, or, where the peer refused it, the workload's own. Shortened. Of the last one, as is the next."""
    expected: str | None = None
    """What the peer's certificate should have said, where it says something else: a SPIFFE id or a trust domain."""
    count: int = 0
    """How many there were."""
    first: str = ""
    """When the first was refused."""
    last: str = ""
    """When the last was refused."""
    first_seconds: float = 0.0
    """How long ago that is."""
    last_seconds: float = 0.0
    """How long ago that is."""


class Connections(Row, frozen=True):
    """Connections of one node, or a page of them."""

    node: str
    trust_domain: str = ""
    connections: list[ConnectionRow] = []
    errors: list[str] = []
    """What could not be listed, and why."""
    next: str | None = None
    """What to say as `after` for the next page; null when this is the last."""


class Refused(Row, frozen=True):
    """Peers that were refused on one node in the last day; those that were met last come first."""

    node: str
    trust_domain: str = ""
    refused: list[RefusedRow] = []


class ConnectionFilter(Parameters, frozen=True):
    """Which connections."""

    live: bool = False
    """Leave out those that have been closed."""
    workload: str | None = None
    """Only those of this workload, "namespace/name"."""
    direction: Literal["inbound", "outbound"] | None = None
    """Only those."""
    anchor: Annotated[str, Meta(pattern="^[0-9a-f]{8,64}$")] | None = None
    """Only those with peers that were verified by the trust anchor whose fingerprint is this, or begins with it."""
    limit: Annotated[int, Meta(ge=1)] | None = None
    """At most so many. Without it: 1,000 in one answer, and no limit in a stream. At most 2,000 in one answer."""
    after: str | None = None
    """Go on behind the page whose `next` this is."""


class RefusedFilter(Parameters, frozen=True):
    """Which refusals."""

    workload: str | None = None
    """Only those of this workload, "namespace/name"."""
    direction: Literal["inbound", "outbound"] | None = None
    """Only those."""
