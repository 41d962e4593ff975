"""The state of a node, as the local API and `nodeseal status` tell it; see nodeseal.contracts.rows."""

from __future__ import annotations

from msgspec import field

from nodeseal.contracts.rows import Row


class Starting(Row, frozen=True):
    """What an agent does that is not ready yet."""

    doing: str = ""
    """The present step."""
    since: str = ""
    """When the agent was started."""
    seconds: float = 0.0
    """How long ago that is."""


class AbsenceRow(Row, frozen=True):
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
    absence: AbsenceRow | None = None
    """The time in which no agent ran; null when there was none before."""
    unready: str | None = None
    """Why the agent does not have yet what a rollout may rely on; null once it does."""
    standby: list[int] = []
    """Pids of other agents that would take over."""
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


class PlaceRow(Row, frozen=True):
    """The cgroup that a core has of its own."""

    cgroup: str = ""
    """Its path in each hierarchy."""
    memory: int | None = None
    """Bytes that are charged to it; null where nobody counts them."""
    memory_limit: int | None = None
    """Null for none; so is `cpu_limit`."""
    cpu_seconds: float | None = None
    """CPU time that it has used."""
    cpu_limit: float | None = None
    """How many CPUs it may use."""


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
    starved: int = 0
    """How many of these times it was because it needed more memory than `core.memory` lets it have."""
    decisions: Decisions | None = None
    """Null while the core does not answer; so are the next two."""
    descriptors: Descriptors | None = None
    handshakes: Handshakes | None = None
    place: PlaceRow | None = None
    """Null when it has no cgroup of its own."""


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
    place: PlaceRow | None = None
    """Null when it has no cgroup of its own."""


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
    early: str | None = None
    """Why the connections of workloads that iptables captures are early; null when they need not be."""
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


class NativeRow(Row, frozen=True):
    """Native connections of a workload, which go from kernel to kernel in plaintext, since capture began."""

    open: int = 0
    """How many there are now."""
    opened: int = 0
    closed: int = 0
    bytes_acknowledged: int = 0
    """Of those that are closed: what the workload sent, and the far kernel has."""
    bytes_received: int = 0
    """The same the other way."""
    ended: int = 0
    """By this agent, because they were allowed no more."""


class PlainClientRow(Row, frozen=True):
    """A client without mutual TLS that is not enrolled: strict mode would refuse it."""

    address: str = ""
    workload: str | None = None
    """Whose address it is now, if the mesh state has it."""
    connections: int = 0
    """How many there have been since capture began."""
    last_seconds: float = 0.0
    """Since one was last seen, within half a minute. What there was before the agent started counts from then."""


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
    connect: str | None = None
    """When the connections that it dials are made: "truthful" (once the far side has accepted) or "early" (at once);
    null while it is not captured."""
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
    native: NativeRow | None = None
    """Null while it is not enrolled."""
    plain_clients: list[PlainClientRow] = []
    """Those of the last day, the latest first, at most 64. Seen with capture by eBPF and native plaintext alone."""


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
