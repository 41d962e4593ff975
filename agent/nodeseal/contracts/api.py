"""What the agent's local API answers, and what it is asked: the rows of `nodeseal status` and `nodeseal connections`.

The keys are a contract with users' scripts. Both ends tolerate each other's version: a field that is missing has its
default, one that is unknown is passed over. Times are ISO 8601 in UTC; a field that ends in `_seconds` counts from the
moment of the answer. docs/reference/local-api.md is made of this file, so each field says what it is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field


class Row(Struct, frozen=True):
    """What all rows have in common: once made, they do not change."""


# ---- status


class Starting(Row, frozen=True):
    """What an agent does that is not ready yet."""

    doing: str = ""
    """The present step."""
    since: str = ""
    """When the agent was started."""
    seconds: float = 0.0
    """How long ago that is."""


class Absence(Row, frozen=True):
    """The time before this agent in which none ran."""

    begin: str = field(default="", name="from")
    """When the agent before was last seen."""
    end: str = field(default="", name="to")
    """When this agent started."""
    seconds: float = 0.0
    """How long no agent ran."""
    not_enrolled: list[str] = []
    """Workloads ("namespace/name") that should have been enrolled meanwhile and were not."""


class AgentRow(Row, frozen=True):
    """The agent's process."""

    pid: int = 0
    version: str = ""
    absence: Absence | None = None
    """The time in which no agent ran; null when there was none before."""
    starting: Starting | None = None
    """Null once the agent is ready. Until then the rest of the status is that of a node on which nothing is."""


class Decisions(Row, frozen=True):
    """How the core decided about connections, since it started."""

    asked: int = 0
    """Decisions that were made."""
    cached: int = 0
    """Decisions that were taken from the cache."""
    p50_us: float = 0.0
    """What half of those made took at most, in microseconds."""
    p99_us: float = 0.0
    """What 99 of 100 took at most, in microseconds."""


class Descriptors(Row, frozen=True):
    """File descriptors of the core's process."""

    open: int = 0
    """How many are open, about."""
    limit: int = 0
    """How many there may be."""


class Handshakes(Row, frozen=True):
    """Peers that have not proven who they are."""

    unproven: int = 0
    """How many there are now."""
    ended: int = 0
    """How many had to go for others, since the core started."""
    slowed: int = 0
    """How many steps waited because of what their source had cost, since the core started."""


class CoreRow(Row, frozen=True):
    """The core that takes new connections."""

    pid: int | None = None
    """Null while none runs."""
    state: str = ""
    """One word: "running", or what it is on its way to."""
    error: str | None = None
    """Why there is none, or why it does not answer."""
    generation: int | None = None
    """Its number among the cores of this node; each new core has the next one."""
    version: str | None = None
    outdated: bool = False
    """Another core is installed than this one; see `nodeseal upgrade-core`."""
    crashes: int = 0
    """How many times a core crashed in the last ten minutes."""
    decisions: Decisions | None = None
    """Null while the core does not answer; so are the next two."""
    descriptors: Descriptors | None = None
    handshakes: Handshakes | None = None


class OlderCoreRow(Row, frozen=True):
    """A core that has been replaced, or is being replaced, and has connections left."""

    pid: int = 0
    generation: int = 0
    version: str = ""
    retired: bool = False
    """It takes no new connections, and ends with its last."""
    connections: int | None = None
    """How many it has left; null when it does not answer."""
    tunnels: int | None = None
    """The same for tunnels."""
    seconds: float = 0.0
    """Since it was retired, or since this agent knows it."""


class MeshRow(Row, frozen=True):
    """The mesh state as this node has it."""

    source: str = field(default="", name="directory")
    """Where it is read from."""
    epoch: int = 0
    """The number of the state that the core decides by; 0: none yet."""
    error: str | None = None
    """What is wrong with it, one line for each problem."""
    error_since: str | None = None
    in_force: str | None = None
    """Which state applies while something is wrong: "present" (as far as it is good), "former" (the last good one) or
    "none". Null when nothing is wrong."""


class HeldPackets(Row, frozen=True):
    """Packets of captured connections that were kept from leaving in plaintext."""

    packets: int = 0
    last_seconds: float | None = None
    """Since the last was seen; null for none since the agent started."""


class CaptureRow(Row, frozen=True):
    """How the connections of workloads are captured."""

    backend: str | None = None
    """ "ebpf" or "iptables": what new workloads get."""
    why: str | None = None
    """Why it is iptables, where eBPF was tried first."""
    held: HeldPackets = HeldPackets()
    tracked: str | None = None
    """Why no rule keeps what processes of the node dial from the node's own NAT; null when there is one."""


class Certificate(Row, frozen=True):
    """A workload's certificate."""

    not_after: str = ""
    """When it expires."""
    remaining_seconds: float = 0.0
    """Until then; below 0 once it has expired."""
    renews_at: str = ""
    """When the agent renews it."""
    serial: str = ""


class ExcludedInbound(Row, frozen=True):
    """Inbound connections that nodeseal leaves alone."""

    ports: list[str] = []
    """Ports of the workload: "80" or "8000-8100"."""
    sources: list[str] = field(default=[], name="from")
    """Networks of clients."""


class ExcludedOutbound(Row, frozen=True):
    """Outbound connections that nodeseal leaves alone."""

    ports: list[str] = []
    """Ports that the workload dials: "80" or "8000-8100"."""
    destinations: list[str] = field(default=[], name="to")
    """Networks that it dials."""


class Exclude(Row, frozen=True):
    """What of a workload nodeseal leaves alone, as the mesh state has it."""

    inbound: ExcludedInbound = ExcludedInbound()
    outbound: ExcludedOutbound = ExcludedOutbound()


class Limit(Row, frozen=True):
    """A limit of a workload, and what it refused."""

    limit: int | None = None
    """Its value; null where there is none."""
    refused: int = 0
    """Connections that it refused."""
    since: str | None = None
    """When the first of them was refused."""
    last_seconds: float | None = None
    """Since the last of them."""


class WorkloadRow(Row, frozen=True):
    """A workload of this node: one that the mesh state gives to it, or one that is still captured here."""

    workload: str = ""
    """ "namespace/name"."""
    address: str = ""
    """The first of its addresses."""
    addresses: list[str] = []
    netns: str | None = None
    """The path of its network namespace; null for one of the node's own."""
    cgroup: str | None = None
    """Of a service of the node: its cgroup."""
    wanted: bool = False
    """The mesh state asks for it."""
    enrolled: bool = False
    phase: str = ""
    """What this node publishes of it: "absent", "joining", "enrolled" or "leaving"."""
    draining: bool = False
    """It leaves the mesh, and its open connections finish."""
    reason: str | None = None
    """Why it is not enrolled, a word of docs/words.md; null when it is."""
    detail: str | None = None
    """The same as a sentence, with what was found; null where the word says all."""
    retry_seconds: float | None = None
    """Until the next try, after a failure."""
    capture: str | None = None
    """The backend that captures it; null while none does."""
    mode: str | None = None
    """ "permissive" or "strict"."""
    exclude: Exclude | None = None
    """What nodeseal leaves alone; null for nothing."""
    on_failure: str | None = None
    """What becomes of its new connections while no core runs."""
    identity: str | None = None
    """Its SPIFFE id; null while it is not enrolled."""
    certificate: Certificate | None = None
    """Null while it has none."""
    connections: int = 0
    """Open ones through the core; this and the numbers below are those of all cores together."""
    tunnels: int = 0
    """Open tunnels of it."""
    refused: int = 0
    """Connections that were refused."""
    failed: int = 0
    """Connections that failed."""
    failed_handshakes: int = 0
    memory: int = 0
    """Bytes that the core holds for it."""
    limits: dict[str, Limit] = {}
    """By the name of the limit; empty while it is not enrolled."""


class ProblemRow(Row, frozen=True):
    """Something that is wrong with the node."""

    word: str = ""
    """A word of docs/words.md."""
    level: str = ""
    """ "error" or "warning"."""
    about: str | None = None
    """The workload or node that it concerns, if it is one."""
    text: str = ""
    """What is wrong, and where."""
    remedy: str = ""
    """What to do."""


class Status(Row, frozen=True):
    """The state of one node."""

    node: str
    """The node's name."""
    run_dir: str = ""
    """Its run directory."""
    trust_domain: str = ""
    agent: AgentRow = AgentRow()
    core: CoreRow = CoreRow()
    older_cores: list[OlderCoreRow] = []
    mesh: MeshRow = MeshRow()
    capture: CaptureRow = CaptureRow()
    node_addresses: list[str] = []
    """Addresses whose inbound connections nodeseal leaves alone: the node's own."""
    past_core: dict[str, int] = {}
    """Connections that nodeseal left alone since capture began, by why."""
    workloads: list[WorkloadRow] = []
    """In the order of their names."""
    problems: list[ProblemRow] = []
    """The worst first; empty when all is well."""


# ---- connections


class ConnectionRow(Row, frozen=True):
    """A connection of a workload of this node: through a core, or past it and why.

    Where both ends are workloads of this node, each has a row.
    """

    id: int | None = None
    """Its number in the core; null past the core."""
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
    reason: str | None = None
    """Without mutual TLS: why, a word of docs/words.md. Closed: what ended it, if it failed."""
    bytes_sent: int | None = None
    """By the application that dialled; null when the kernel does not say."""
    bytes_received: int | None = None
    """The same the other way."""
    age_seconds: float | None = None
    """Since it was accepted; null past the core."""
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


# ---- events


class LimitReached(Row, frozen=True):
    """Connections of a workload that a limit refused."""

    limit: str = ""
    """Its name, as in the status of the workload."""
    value: int | None = None
    """Null where nobody has set it."""
    refused: int = 0
    """Since the last event of the same limit."""


class EventRow(Row, frozen=True):
    """Something that has happened to a workload of this node. A line of a stream that begins when it is asked for."""

    event: str
    """ "opened", "closed", "failed" (a connection of a workload that ended before it was open), "refused" (a peer),
    "limit", or "lost" (events that the listener was too slow for). A newer agent may have others."""
    time: str = ""
    """When it happened."""
    core: int = 0
    """The generation of the core that tells it."""
    workload: str | None = None
    """The workload of this node, "namespace/name"; null for one that was removed."""
    connection: ConnectionRow | None = None
    """Of "opened", "closed" and "failed": as it was at that moment."""
    refused: RefusedRow | None = None
    """Of "refused"."""
    limit: LimitReached | None = None
    """Of "limit"."""
    lost: int = 0
    """Of "lost": how many."""


# ---- the rest


class CoreNumber(Row, frozen=True):
    """One core of a node."""

    pid: int = 0
    generation: int = 0
    version: str = ""


class UpgradedCore(Row, frozen=True):
    """A new core has taken over."""

    node: str
    pid: int = 0
    generation: int = 0
    version: str = ""
    before: CoreNumber = CoreNumber()
    """The core that it took over from, which finishes its connections."""
    workloads: int = 0
    """How many it has."""


class AgentVersion(Row, frozen=True):
    """Who answers."""

    version: str = ""
    pid: int = 0


class Failure(Row, frozen=True):
    """Why a request was not carried out, as application/problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str = ""
    """What the status means."""
    status: int = 0
    """The HTTP status."""
    detail: str = ""
    """What went wrong, one line."""


class Incomplete(Row, frozen=True):
    """A line of a stream that is no row: what could not be listed."""

    error: str = ""


# ---- what is asked


class Parameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Of an operation, from the query of its URL. One that is unknown is refused: a filter must not be passed over."""


class ConnectionFilter(Parameters, frozen=True):
    """Which connections."""

    live: bool = False
    """Leave out those that have been closed."""
    workload: str | None = None
    """Only those of this workload, "namespace/name"."""
    direction: Literal["inbound", "outbound"] | None = None
    """Only those."""
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


class EventFilter(Parameters, frozen=True):
    """Which events. That some were lost is told in any case."""

    workload: str | None = None
    """Only those of this workload, "namespace/name"."""
    event: Literal["opened", "closed", "failed", "refused", "limit"] | None = None
    """Only those."""
