"""Every operation between an agent and a core: requests, answers and the rows in them.

A message is one JSON object on the core's control socket (nodeseal.linux.control_socket, which carries descriptors
beside it). A request names its operation in "op". Its answer is {"ok": true, ...}, or {"ok": false, "error": one line}
when the core did not carry it out. A core answers each request before it reads the next one of the same connection. A
connection that has subscribed to events (Subscribe) carries nothing else from then on: nodeseal.contracts.events.

Agents and cores of different versions meet: an old core lives on beside a new agent until its last connection has
ended. So both ends pass over fields that they do not know, and take the default of a field that is missing. The number
of the protocol (`PROTOCOL`, told by Hello) says which operations a core has:

    3   all but the following
    4   WorkloadLimits
    5   Subscribe, TrustBundle, Refusals, and Connections in parts; before it, trust anchors come with
        WorkloadCredentials
    6   the listener role 4, where SYNs are parked; WorkloadAddresses. Before it, a workload of the mesh
        state has at most one address of each family (nodeseal.mesh.former)
    7   TrustBundles, Revocations, Anchors, and private keys in a descriptor. Before it, a core trusts its own
        trust domain only, knows of nothing that was revoked, and of no peer by which anchor it was verified
    8   fronts of services, and nodes, in the mesh state. Before it, a core gets no service that has fronts:
        what is dialled there is nobody's to it (nodeseal.mesh.former)

An agent asks every operation of cores whose protocol is SPOKEN. Of all others it asks only those that keep their form
for ever: Hello, Retire, Live, Listeners, Stop.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar, Union, get_args

import msgspec

from nodeseal.contracts.refusal import Refusal
from nodeseal.mesh.limits import Limits

PROTOCOL = 8
OLDEST_PROTOCOL = 4
SPOKEN = range(OLDEST_PROTOCOL, PROTOCOL + 1)
LIMITS_SINCE = 4
TRUST_APART_SINCE = 5
PARTS_SINCE = 5
EVENTS_SINCE = 5
PARKING_SINCE = 6
ADDRESSES_SINCE = 6
FEDERATION_SINCE = 7
REVOCATION_SINCE = 7
KEY_FD_SINCE = 7
ANCHORS_SINCE = 7
FRONTS_SINCE = 8

MESH_PART = 1000
"""Most workloads and services in one message. A mesh state goes over in parts: writing and reading JSON keeps the
interpreter's lock, and whatever else is to run in the agent or in the core, the decisions above all, waits for it."""
CONNECTIONS_PART = 1000
"""Most connections in one answer, for the same reason."""

REVOCATIONS_PART = 5000
"""Most digests in one message about revocations."""
REVOCATIONS_MAX = 1_000_000
"""Most digests that a core keeps: 32 MB while a set of them is replaced."""
DOMAINS_MAX = 256
"""Most trust domains that a core takes anchors of."""
BUNDLE_MAX = 256 * 1024
"""Most bytes of one trust domain's anchors, in PEM form."""
KEY_MAX = 16 * 1024
"""Most bytes of a private key."""

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
"""Stands for an identity, a certificate or a trust anchor: nodeseal.mesh.revoked."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Key = Count
"""By which the agent and one core know a workload; a core never gets the same one twice."""

_LINE_MAX = 2000


class MessageError(Exception):
    """A message is not one of this protocol; one line that repeats nothing secret of it."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """That a request was carried out. Operations with nothing more to say answer this."""

    ok: bool = True


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """That a request was not carried out, and why. As what an answer begins with: whether it was."""

    ok: bool = False
    error: str = "the core refused without a reason"


A = TypeVar("A", bound=Answer)


class Request(msgspec.Struct, Generic[A], frozen=True, kw_only=True, tag_field="op"):
    """A request that is answered by A."""


# ---- about the core itself


class CoreWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """A workload as a core has it."""

    key: Key
    name: str
    """namespace/name"""
    identity: str
    """Its SPIFFE id."""
    addresses: tuple[str, ...] = ()
    roles: tuple[int, ...] = ()
    """The listeners that the core holds, by enum ns_listener_role."""


class Introduction(Answer, frozen=True, kw_only=True):
    """What a core says of itself."""

    pid: Count
    version: str
    build: str = ""
    """See nodeseal.local.generations."""
    protocol: int
    generation: Count
    retired: bool = False
    """Another core takes new connections."""
    epoch: Count = 0
    """Of its mesh state; 0: it has none."""
    trust_domain: str
    workloads: tuple[CoreWorkload, ...] = ()


class Hello(Request[Introduction], frozen=True, kw_only=True, tag="hello"):
    """Who the core is and what it has."""

    protocol: int = 0
    """The agent's."""


class Retire(Request[Answer], frozen=True, kw_only=True, tag="retire"):
    """The core lets its listeners go and ends with its last connection."""

    limit_s: float | None = None
    """Or after so many seconds."""


class LiveCounts(Answer, frozen=True, kw_only=True):
    """What a core has now."""

    connections: Count = 0
    tunnels: Count = 0
    """With those whose handshake is not done."""


class Live(Request[LiveCounts], frozen=True, kw_only=True, tag="live"):
    """How much there is for a retired core to finish."""


class Stop(Request[Answer], frozen=True, kw_only=True, tag="stop"):
    """The core resets its connections and ends."""


# ---- workloads


class WorkloadAdd(Request[Answer], frozen=True, kw_only=True, tag="workload_add"):
    """Adds a workload under a new key. One descriptor comes along: its network namespace."""

    key: Key
    name: str
    identity: str
    addresses: tuple[str, ...]
    """Its own, the first of them first asked for; at least one."""


class WorkloadAddresses(Request[Answer], frozen=True, kw_only=True, tag="workload_addresses"):
    """These are the workload's own addresses from now on. Its connections feel nothing."""

    key: Key
    addresses: tuple[str, ...]
    """At least one. The first that the workload was added with stays what it is known by."""


class WorkloadLimits(Request[Answer], frozen=True, kw_only=True, tag="workload_limits"):
    """What the workload may have from now on."""

    key: Key
    limits: Limits


class WorkloadCredentials(Request[Answer], frozen=True, kw_only=True, tag="workload_credentials"):
    """Gives a workload its certificate chain (leaf first, PEM) and private key.

    The key comes in a descriptor beside the message, or, for a core whose protocol is older than KEY_FD_SINCE, as text.
    The core reads the descriptor from its beginning to its end, whatever its position, and closes it; what it has read
    is wiped. Neither end of the control socket has the key in a Python object."""

    key: Key
    identity: str
    chain_pem: str
    key_fd: bool = False
    """One descriptor comes along: a memfd, or another file that can be read at any position, with the key: PKCS 8, not
    encrypted, DER or PEM, at most KEY_MAX bytes."""
    key_pem: str | msgspec.UnsetType = msgspec.UNSET
    """Otherwise: the key, PKCS 8."""
    bundle_pem: str | msgspec.UnsetType = msgspec.UNSET
    """The trust anchors: of an agent, or for a core, whose protocol is older than TRUST_APART_SINCE."""

    def __repr__(self) -> str:
        # The private key must get into no log.
        return f"WorkloadCredentials(key={self.key}, identity={self.identity!r})"


class TrustBundle(Request[Answer], frozen=True, kw_only=True, tag="trust_bundle"):
    """The trust anchors (PEM) by which peers of the core's own trust domain are verified from now on, for all
    workloads. Those of other domains are trusted no more. Superseded by TrustBundles."""

    trust_domain: str
    bundle_pem: str


class DomainBundle(msgspec.Struct, frozen=True, kw_only=True):
    """The trust anchors of one trust domain."""

    trust_domain: str
    bundle_pem: Annotated[str, msgspec.Meta(max_length=BUNDLE_MAX)]
    """Certificates in PEM form, at least one."""


class TrustBundles(Request[Answer], frozen=True, kw_only=True, tag="trust_bundles"):
    """The trust domains whose workloads may be peers from now on, of all workloads of the core, and the anchors of
    each.

    A peer is verified by the anchors of its own trust domain and by no others. All or nothing: a bundle that cannot be
    read is refused by its domain's name, and then everything stays as it was. What is the same as before changes
    nothing, and costs nothing. Running tunnels go on, also those of a domain that is left out."""

    bundles: Annotated[tuple[DomainBundle, ...], msgspec.Meta(min_length=1, max_length=DOMAINS_MAX)]
    """No domain twice; the core's own is among them."""


class RevocationsInForce(Answer, frozen=True, kw_only=True):
    """How many digests are revoked now; before the last part, how many were."""

    count: Count


class Revocations(Request[RevocationsInForce], frozen=True, kw_only=True, tag="revocations"):
    """What is revoked from now on: a whole set, or a difference to what the core has, in parts.

    Nothing of it counts before the last part. From then on handshakes with whom it names are refused, and tunnels that
    are up are cut at once, whether it names the peer or the core's own workload. A core that starts has none revoked.
    An agent that does not know what a core has sends the whole set: what was revoked before stays so without a gap."""

    number: Count
    """Of this part; 0 begins anew, others have to follow one another."""
    last: bool
    """It is complete with this one."""
    whole: bool
    """Of the last part: what is not `revoked` in one of the parts is not any more, and `restored` says nothing."""
    revoked: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=REVOCATIONS_PART)] = ()
    restored: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=REVOCATIONS_PART)] = ()
    """Not revoked any more. One that is in both is revoked."""


class WorkloadListen(Request[Answer], frozen=True, kw_only=True, tag="workload_listen"):
    """Hands listening sockets over: a descriptor a role comes along, in this order."""

    key: Key
    roles: tuple[int, ...]


class WorkloadUnlisten(Request[Answer], frozen=True, kw_only=True, tag="workload_unlisten"):
    """The core closes its listeners of these roles; a role that it does not have is passed over."""

    key: Key
    roles: tuple[int, ...]


class ListenerRoles(Answer, frozen=True, kw_only=True):
    """The roles of the descriptors that come along, in this order."""

    roles: tuple[int, ...]


class Listeners(Request[ListenerRoles], frozen=True, kw_only=True, tag="listeners"):
    """The core's listening sockets of a workload."""

    key: Key


class WorkloadRemove(Request[Answer], frozen=True, kw_only=True, tag="workload_remove"):
    """The core forgets the workload; what is left of its connections is reset."""

    key: Key


# ---- the mesh state; what stands in `part`, `full` and `difference` is nodeseal.mesh.wire's


class MeshPart(Request[Answer], frozen=True, kw_only=True, tag="mesh_part"):
    """A part of a mesh state that is coming; number 0 begins anew. Counts for nothing before MeshChange."""

    number: Count
    part: msgspec.Raw


class MeshChange(Request[Answer], frozen=True, kw_only=True, tag="mesh"):
    """The mesh state from now on: the last part, after `parts` others. `full`, or a `difference` to the epoch `base`,
    which has to be in force."""

    epoch: Count
    parts: Count = 0
    base: Count | msgspec.UnsetType = msgspec.UNSET
    full: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    difference: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


NO_MESH = msgspec.Raw(b"null")
"""In the place of a part: the core never had a mesh state."""


class MeshPiece(Answer, frozen=True, kw_only=True):
    """Objects of the mesh state."""

    part: msgspec.Raw = msgspec.field(default_factory=lambda: NO_MESH)
    """Null when the core never had one."""
    next: Count | None = None
    """Where the next piece begins; null at the end."""


class MeshRead(Request[MeshPiece], frozen=True, kw_only=True, tag="mesh_read"):
    """The mesh state by which the core decides, from its object number `first` on."""

    first: Count = 0


# ---- what is observed


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A live or lately closed connection: struct ns_connection of nodeseal_core.h."""

    id: Count
    """Unique in the life of the core process."""
    workload: str | None = None
    """By its name; null for one that was removed."""
    direction: str
    """ "outbound": the workload dialled; "inbound": it was dialled."""
    state: str
    """ "deciding", "connecting", "open" or "closed"."""
    mtls: bool = False
    """Its bytes cross the wire in a tunnel whose peer is `peer`."""
    source: str = ""
    """The application that dialled; this and the following are "10.0.0.1:80", "[fd00::1]:80", or "" for none."""
    destination: str = ""
    """What it dialled."""
    endpoint: str = ""
    """Outbound: the endpoint that was chosen; inbound: the destination."""
    bytes_sent: Count = 0
    """By the application that dialled; so is the next."""
    bytes_received: Count = 0
    age_ms: Count = 0
    """Since it was accepted."""
    closed_ms: Count = 0
    """Of a closed one: how long ago that was."""
    peer: str = ""
    """The peer's verified SPIFFE id, of those with mtls."""
    tls: str = ""
    """Protocol and cipher suite as negotiated, of those with mtls."""
    group: str = ""
    """The group of the key exchange, "X25519MLKEM768"; of those with mtls. So is the next."""
    signature: str = ""
    """The algorithm by which the peer has signed the handshake, "ecdsa_secp256r1_sha256"."""
    anchor: str = ""
    """The trust anchor that the peer was verified by: the first 32 digits of its fingerprint; of those with mtls."""
    reason: str = ""
    """Open in plaintext: why; closed or failing: what ended it."""


class ConnectionRows(Answer, frozen=True, kw_only=True):
    """Connections in the order of their ids."""

    connections: tuple[Connection, ...] = ()
    next: Count | None = None
    """The `first` of the next part; null at the end."""
    refused: tuple[Refusal, ...] = ()
    """Of a core whose protocol is older than PARTS_SINCE, which gives all in one answer, in no order."""


class Connections(Request[ConnectionRows], frozen=True, kw_only=True, tag="connections"):
    """The connections whose ids are `first` or greater. The parts are of one moment if they are read one after the
    other: the core keeps what it found for this control connection, but not for long. A core whose protocol is older
    than PARTS_SINCE gives them all."""

    first: Count = 0
    limit: Annotated[int, msgspec.Meta(ge=1)] = CONNECTIONS_PART
    """At most so many, and at most CONNECTIONS_PART."""
    live: bool = False
    """None that is closed."""
    workload: str | None = None
    """Only those of this one."""
    direction: str | None = None
    """Only those."""


class RefusalRows(Answer, frozen=True, kw_only=True):
    """Peers that were refused in the last day."""

    refused: tuple[Refusal, ...] = ()


class Refusals(Request[RefusalRows], frozen=True, kw_only=True, tag="refusals"):
    """All of them."""


class CoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of the process: struct ns_core_stats of nodeseal_core.h."""

    epoch: Count = 0
    workers: Count = 0
    questions: Count = 0
    cache_hits: Count = 0
    live_connections: Count = 0
    live_tunnels: Count = 0
    decision_p50_ns: Count = 0
    decision_p99_ns: Count = 0
    descriptors: Count = 0
    descriptor_limit: Count = 0
    strangers: Count = 0
    strangers_ended: Count = 0
    strangers_slowed: Count = 0


class Limited(msgspec.Struct, frozen=True, kw_only=True):
    """Connections that met one limit: struct ns_limited of nodeseal_core.h."""

    refused: Count = 0
    """Since the workload was added."""
    first_ms: Count = 0
    """How long ago the first was; 0: there was none. So is the next."""
    last_ms: Count = 0


class WorkloadStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a workload: struct ns_workload_stats of nodeseal_core.h."""

    key: Key
    workload: str | None = None
    """By its name; null for one that is being removed."""
    connections: Count = 0
    tunnels: Count = 0
    accepted: Count = 0
    tunnelled: Count = 0
    plaintext: Count = 0
    refused: Count = 0
    failed: Count = 0
    tls_failed: Count = 0
    memory: Count = 0
    descriptors: Count = 0
    limits: Limits = Limits(0, 0, 0)
    limited: dict[str, Limited] = {}
    """By what was met: LIMITED of nodeseal.splice.native."""


class Counters(Answer, frozen=True, kw_only=True):
    """The process's counters, and those of each workload."""

    core: CoreStats = CoreStats()
    workloads: tuple[WorkloadStats, ...] = ()


class Stats(Request[Counters], frozen=True, kw_only=True, tag="stats"):
    """All counters."""


class AnchorUse(msgspec.Struct, frozen=True, kw_only=True):
    """What runs because a trust anchor verified the peer: struct ns_anchor_use of nodeseal_core.h."""

    anchor: Digest
    """The first 32 digits of its fingerprint."""
    connections: Count = 0
    tunnels: Count = 0
    """With those that have no connection now."""


class AnchorUses(Answer, frozen=True, kw_only=True):
    """The trust anchors that verified the peers of open tunnels, each once."""

    anchors: tuple[AnchorUse, ...] = ()


class Anchors(Request[AnchorUses], frozen=True, kw_only=True, tag="anchors"):
    """Which trust anchors are needed by what runs. Costs as much as there are tunnels, however many connections these
    have."""


class Subscribe(Request[Answer], frozen=True, kw_only=True, tag="subscribe"):
    """From its answer on this control connection carries events (nodeseal.contracts.events), and no more requests."""


# ---- reading and writing

OPERATIONS: tuple[type[Request[Any]], ...] = (
    Hello,
    Retire,
    Live,
    Stop,
    WorkloadAdd,
    WorkloadAddresses,
    WorkloadLimits,
    WorkloadCredentials,
    TrustBundle,
    TrustBundles,
    Revocations,
    WorkloadListen,
    WorkloadUnlisten,
    Listeners,
    WorkloadRemove,
    MeshPart,
    MeshChange,
    MeshRead,
    Connections,
    Refusals,
    Stats,
    Anchors,
    Subscribe,
)


def answer_type(request: type[Request[A]]) -> type[A]:
    """What a request of this type is answered with."""
    (answer,) = get_args(request.__orig_bases__[0])  # type: ignore[attr-defined]
    return answer  # type: ignore[no-any-return]


def operation_name(request: type[Request[Any]]) -> str:
    """ "op" of requests of this type."""
    return str(request.__struct_config__.tag)


class _Operation(msgspec.Struct):
    op: str = ""


_NAMES = frozenset(map(operation_name, OPERATIONS))
_requests = msgspec.json.Decoder(Union[OPERATIONS])  # noqa: UP007  (a union made of a tuple)
_operations = msgspec.json.Decoder(_Operation)
_verdicts = msgspec.json.Decoder(Refused)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises; the last of these for lists in lists in lists."""
encode = msgspec.json.encode
"""A message as it goes over the control socket."""


def read_request(body: bytes) -> Request[Any]:
    """The core's side. Raises MessageError."""
    try:
        request: Request[Any] = _requests.decode(body)
    except _UNREADABLE as error:
        raise MessageError(_why_no_request(body, error)) from None
    return request


def _why_no_request(body: bytes, error: Exception) -> str:
    try:
        name = _operations.decode(body).op
    except _UNREADABLE:
        return f"malformed request: {_line(error)}"
    if name not in _NAMES:
        return f"the core does not know the operation {name[:80]!a}"
    return f"malformed request {name!r}: {_line(error)}"


def read_answer(body: bytes, expected: type[A]) -> A | Refused:
    """The agent's side. Raises MessageError."""
    try:
        verdict = _verdicts.decode(body)
        if not verdict.ok:
            return Refused(error=_line(verdict.error))
        return msgspec.json.decode(body, type=expected)
    except _UNREADABLE as error:
        raise MessageError(f"an answer that is not understood: {_line(error)}") from None


def _line(error: object) -> str:
    return " ".join(str(error).split())[:_LINE_MAX]
