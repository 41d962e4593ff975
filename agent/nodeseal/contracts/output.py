"""What commands print with `-o json`, for users' scripts: the keys are a contract.

A command that fails prints {"errors": [...]}, one line each, and says the same on standard error.
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from nodeseal.contracts import api
from nodeseal.contracts.connections import ConnectionRow, RefusedRow
from nodeseal.contracts.status import ProblemRow, Status


class NodeStatuses(Struct, frozen=True):
    """`nodeseal status`."""

    nodes: list[Status] = []
    """One for each node that answered, with `run_dir` as it was asked for."""
    errors: list[str] = []
    """One line for each node that did not answer."""


class NodeProblem(ProblemRow, frozen=True):
    """Something that is wrong with a node, or that no agent answers."""

    node: str | None = None
    """The node's name; null when no agent answers."""


class StatusCheck(Struct, frozen=True):
    """`nodeseal status --check`."""

    level: str = "ok"
    """ "ok", "warning" or "error": the worst of the problems."""
    problems: list[NodeProblem] = []
    """The worst first."""


class NodeConnection(ConnectionRow, frozen=True):
    """A connection, and the node that it is on."""

    node: str = ""
    run_dir: str = ""
    """The node's run directory."""


class NodeRefused(RefusedRow, frozen=True):
    """Refusals, and the node that they are on."""

    node: str = ""
    run_dir: str = ""
    """The node's run directory."""


class NodeConnections(Struct, frozen=True):
    """`nodeseal connections`."""

    connections: list[NodeConnection] = []
    refused: list[NodeRefused] = []
    """Peers that were refused in the last day; none with --live."""
    errors: list[str] = []
    """What could not be listed, and one line for each node that did not answer."""


class NodeUpgrade(api.UpgradedCore, frozen=True):
    """A new core, and the node that it is on."""

    run_dir: str = ""
    """The node's run directory."""


class NodeUpgrades(Struct, frozen=True):
    """`nodeseal upgrade-core`."""

    nodes: list[NodeUpgrade] = []
    errors: list[str] = []
    """One line for each node whose core was not replaced."""


class Version(Struct, frozen=True):
    """`nodeseal version`."""

    version: str = ""


class Cleaned(Struct, frozen=True):
    """`nodeseal cleanup`."""

    removed: list[str] = []
    """What was removed, one line each."""
    failed: list[str] = []
    """What could not be removed, and why, one line each."""


class Feature(Struct, frozen=True):
    """Something that nodeseal looks for on a machine."""

    name: str = ""
    use: str = ""
    """The backend that needs it: "ebpf", "iptables" or "both"."""
    found: bool = False
    detail: str = ""
    """What was found, or what is missing and what to do about it."""
    needed: bool = True
    """The backend cannot do without it."""


class StrictRefusal(Struct, frozen=True):
    """A client that a permissive workload has had without mutual TLS."""

    workload: str = ""
    """The permissive one: "namespace/name"."""
    address: str = ""
    """The client's."""
    client: str | None = None
    """Whose address that is now, if the mesh state has it."""
    connections: int = 0
    """How many there have been since the workload is captured."""
    last_seconds: float = 0.0
    """Since one was last seen."""


class MachineCheck(Struct, frozen=True):
    """`nodeseal check`."""

    features: list[Feature] = []
    wanted: str = ""
    """The backend that the configuration asks for: "auto", "ebpf" or "iptables"."""
    chosen: str | None = None
    """The backend that would capture; null when none could."""
    why: str = ""
    """Why this one, or why none."""
    reservations: list[str] = []
    """What the chosen backend does not promise."""
    warnings: list[str] = []
    """What would not work with this configuration and its mesh state."""
    strict_refuses: list[StrictRefusal] = []
    """Clients of permissive workloads, seen in the last day, that strict mode would refuse."""
    strict_unknown: str | None = None
    """Why there may be others; null when what is above is all that was seen."""


class MeshProblem(Struct, frozen=True):
    """Something that is wrong in a mesh state."""

    file: str = ""
    line: int = 0
    """From 1 on; 0: the file as a whole."""
    field: str = ""
    """May be empty."""
    expected: str = ""
    found: str = ""
    passed_over: bool = False
    """Nothing was read of it, and what was read counts."""


class MeshCheck(Struct, frozen=True):
    """`nodeseal mesh check`."""

    ok: bool = False
    problems: list[MeshProblem] = []
    trust_domain: str | UnsetType = UNSET
    """This and what follows is there if the mesh state can be read."""
    nodes: int | UnsetType = UNSET
    """How many nodes it names."""
    workloads: int | UnsetType = UNSET
    """How many there are; so are the next."""
    services: int | UnsetType = UNSET


class CaMade(Struct, frozen=True):
    """`nodeseal ca init`."""

    directory: str = ""
    trust_domain: str = ""
    key_type: str = ""
    """Of both keys: "p256", "p384" or "ed25519"."""


class CaRequested(Struct, frozen=True):
    """`nodeseal ca request`."""

    directory: str = ""
    request: str = ""
    """The file that was written."""
    key_sha256: str = ""
    """The fingerprint of the key, to be compared with what `nodeseal ca sign` prints."""
    key_type: str = ""
    """The key's kind: "p256", "p384" or "ed25519"."""


class CaRenewed(Struct, frozen=True):
    """`nodeseal ca renew`: the intermediate that counts from now on."""

    directory: str = ""
    trust_domain: str | None = None
    not_after: str = ""
    """When it expires."""
    sha256: str = ""
    """Its fingerprint."""
    key_sha256: str = ""
    """Its key's fingerprint."""
    key_type: str = ""
    """Its key's kind: "p256", "p384" or "ed25519"; of a certificate that others made perhaps another, such as
    "rsa3072"."""


class CaSigned(CaRenewed, frozen=True):
    """`nodeseal ca sign`: the intermediate that was signed."""

    certificate: str = ""
    """The file that was written."""


class CaCertificate(Struct, frozen=True):
    """A certificate of a CA."""

    role: str = ""
    """ "root" or "intermediate"."""
    file: str = ""
    subject: str = ""
    trust_domain: str | None = None
    """The one that it is limited to; null when it names none, or several."""
    not_before: str = ""
    not_after: str = ""
    days_left: int = 0
    """Below 0 once it has expired."""
    sha256: str = ""
    """Its fingerprint."""
    serial: str = ""
    """Its serial number in hexadecimal, as `nodeseal revoke serial` takes it."""
    path_length: int | None = None
    """How many CAs may stand below it; null: as many as there are."""
    key_type: str = ""
    """The kind of its key: "p256", "p384" or "ed25519"; of a CA that others made perhaps another, such as
    "rsa3072"."""
    key: str | None = None
    """The file with its key; null when it is not there or cannot be used."""


class CaDescription(Struct, frozen=True):
    """`nodeseal ca show`."""

    directory: str = ""
    trust_domain: str | None = None
    usable: bool = False
    """An agent can issue from it."""
    why: str | None = None
    """Why not."""
    certificates: list[CaCertificate] = []
    keys: dict[str, bool] = {}
    """Of each file that may hold a key: whether it is there."""
    warnings: list[str] = []
    """What ends soon, and what others than root can get at."""


class TrustAnchorRow(Struct, frozen=True):
    """A trust anchor of a mesh."""

    sha256: str = ""
    """Its fingerprint, by which it is known."""
    subject: str | None = None
    """Null for what is no certificate; so are the next."""
    trust_domain: str | None = None
    """The one that it is limited to; null when it names none."""
    not_after: str | None = None
    days_left: int | None = None
    """Below 0 once it has expired."""


class TrustAdded(Struct, frozen=True):
    """`nodeseal trust add`."""

    mesh: str = ""
    """The mesh directory."""
    added: list[TrustAnchorRow] = []
    present: list[TrustAnchorRow] = []
    """Those that the mesh had already."""


class NodeTrust(Struct, frozen=True):
    """What a node says of a trust anchor."""

    node: str = ""
    has: bool | None = None
    """Its core verifies peers by it; null when the node says nothing."""
    issues: bool = False
    """Its workloads get certificates that are verified by it."""
    certificates_until: str | None = None
    """When the last of its certificates expires that is verified by it, where it issues by another by now; null when it
    has none."""
    connections: int = 0
    """At most so many of its live connections are with peers that it has verified by it, where it issues by another by
    now."""
    needs: str | None = None
    """Why the anchor must not be removed yet; null when this node does not need it."""


class TrustRemoved(Struct, frozen=True):
    """`nodeseal trust remove`."""

    mesh: str = ""
    """The mesh directory."""
    removed: list[TrustAnchorRow] = []
    needed: list[NodeTrust] = []
    """Nodes that needed one of them, with --force."""


class TrustList(Struct, frozen=True):
    """`nodeseal trust list`."""

    mesh: str = ""
    """The mesh directory."""
    anchors: list[TrustAnchorRow] = []
    """Empty: each node trusts the anchors of its own CA."""


class AnchorStatus(TrustAnchorRow, frozen=True):
    """A trust anchor, and what each node says of it."""

    nodes: list[NodeTrust] = []


class TrustStatus(Struct, frozen=True):
    """`nodeseal trust status`."""

    mesh: str = ""
    """The mesh directory."""
    complete: bool = False
    """Every node has every anchor, and no other."""
    anchors: list[AnchorStatus] = []
    issuers: dict[str, list[str]] = {}
    """By the first half of a root's fingerprint: the nodes that issue by it."""
    lingering: dict[str, list[str]] = {}
    """The same: the nodes that still trust it, although it is no trust anchor of the mesh."""


class CaTokenMade(Struct, frozen=True):
    """`nodeseal ca token create`."""

    id: str = ""
    """By which the other commands name it."""
    node: str = ""
    token: str = ""
    """The token itself, which is never shown again."""
    expires: str = ""
    """Until when it can be used."""
    service_sha256: str = ""
    """What agents know the service by: SHA-256 over its SubjectPublicKeyInfo."""
    next_sha256: str | None = None
    """The same of the key that it has next; null: there is none."""


class CaServiceState(Struct, frozen=True):
    """One process of the certificate service."""

    address: str = ""
    state: str = ""
    """ "active", "standby", "impaired", or "away": nobody answers there."""
    since: str | None = None
    """Since when it issues, or stands by."""
    version: str = ""
    """Empty when it is not told to whoever asks."""
    why: str | None = None
    """Why it is away."""


class CaServiceRefused(Struct, frozen=True):
    """How many requests were refused with a word."""

    word: str = ""
    count: int = 0


class CaServiceCertificate(Struct, frozen=True):
    """A certificate of the CA that the service issues by."""

    role: str = ""
    """ "root" or "intermediate"."""
    not_after: str = ""
    days_left: int = 0
    """Below 0 once it has expired."""


class CaStatus(Struct, frozen=True):
    """`nodeseal ca status`. What is null is not told to whoever asks from elsewhere."""

    level: str = "ok"
    """ "ok", "warning" or "error": the worst of what is wrong; the exit status is 0, 1 or 2."""
    services: list[CaServiceState] = []
    trust_domain: str | None = None
    certificates: list[CaServiceCertificate] = []
    nodes: int | None = None
    """Nodes with a certificate that has not expired."""
    issued_last_hour: int | None = None
    """Certificates, nodes' own included."""
    valid: int | None = None
    """Those that have not expired."""
    waiting: int | None = None
    """Requests that wait to be signed."""
    refused: list[CaServiceRefused] | None = None
    """Since the one that issues does so; the most frequent first."""
    errors: list[str] = []
    """What is wrong, one line each."""
    warnings: list[str] = []
    """What will be wrong, or may be."""


class CaServiceKeys(Struct, frozen=True):
    """`nodeseal ca key show`, `next` and `switch`: by what agents know the service, the SHA-256 over its
    SubjectPublicKeyInfo."""

    service_sha256: str = ""
    next_sha256: str | None = None
    """Of the key that is not used yet; null: there is none."""
    former_sha256: str | None = None
    """Of the one that was used before; null: there is none, or it was removed."""


class CaToken(Struct, frozen=True):
    """A join token."""

    id: str = ""
    node: str = ""
    state: str = ""
    """ "open", "used", "expired" or "revoked"."""
    created: str = ""
    expires: str = ""
    used: str | None = None
    """When a node joined with it; null: none has."""
    revoked: str | None = None
    """When it was revoked; null: it was not."""


class CaTokens(Struct, frozen=True):
    """`nodeseal ca token list`."""

    tokens: list[CaToken] = []
    """The newest first."""


class CaTokensRevoked(Struct, frozen=True):
    """`nodeseal ca token revoke`."""

    ids: list[str] = []


class CaIssuedCertificate(Struct, frozen=True):
    """A certificate that the service has issued. `nodeseal ca export` has the same fields."""

    serial: str = ""
    """In lower hexadecimal."""
    kind: str = ""
    """What it is for: "workload" or "node"."""
    node: str = ""
    """Which node asked for it."""
    identity: str = ""
    key_sha256: str = ""
    """The fingerprint of its key."""
    issued: str = ""
    not_after: str = ""
    """When it expires."""
    reason: str = ""
    """ "first" or "renewal"; of a node that joined by a token "join"."""
    credential: str = ""
    """What the node proved itself with: "token ID" or "certificate SERIAL"."""


class CaIssued(Struct, frozen=True):
    """`nodeseal ca issued`."""

    certificates: list[CaIssuedCertificate] = []
    """The newest first."""
    count: int = 0
    """How many there are; more than are listed if --limit is less."""


class CaBackup(Struct, frozen=True):
    """`nodeseal ca backup`."""

    directory: str = ""
    files: list[str] = []


class RevocationRow(Struct, frozen=True):
    """Something that is revoked."""

    what: str = ""
    """ "identity", "node", "serial", "serials" or "anchor"."""
    name: str = ""
    """The SPIFFE id, the node, the serial number or the fingerprint of the trust anchor; of several serial numbers a
    digest of them."""
    identities: list[str] = []
    """The SPIFFE ids that are revoked by it."""
    serials: int = 0
    """How many serial numbers are; of a node those of what was issued to it."""
    reason: str = ""
    since: str | None = None


class RevocationsChanged(Struct, frozen=True):
    """`nodeseal revoke identity`, `node` and `serial`."""

    mesh: str = ""
    """The mesh directory."""
    revoked: list[RevocationRow] = []
    """Empty if it was revoked already."""
    restored: list[RevocationRow] = []
    """What is not revoked any more, with --undo."""
    notes: list[str] = []
    """What the command could not revoke, one line each."""


class RevocationList(Struct, frozen=True):
    """`nodeseal revoke list`."""

    mesh: str = ""
    """The mesh directory."""
    revoked: list[RevocationRow] = []


class LabNode(Struct, frozen=True):
    """A node of a lab."""

    name: str = ""
    netns: str = ""
    """The name of its network namespace."""
    address: str = ""
    """The first of its addresses."""
    addresses: list[str] = []
    agent_pid: int | None = None
    """Null when no agent runs."""
    core_pids: list[int] = []
    """The newest first."""
    trust_domain: str = ""
    """Whose identities its pods have."""


class LabPod(Struct, frozen=True):
    """A pod of a lab."""

    name: str = ""
    node: str = ""
    netns: str = ""
    """The name of its network namespace."""
    address: str = ""
    """The first of its addresses."""
    addresses: list[str] = []
    enrolled: bool = False
    identity: str | None = None
    """Its SPIFFE id; null unless it is enrolled."""


class LabStatus(Struct, frozen=True):
    """`nodeseal lab up` and `nodeseal lab status`."""

    nodes: list[LabNode] = []
    pods: list[LabPod] = []
    supervisor_pid: int | None = None
    """What starts agents again when they end; null when it does not run."""


class LabPods(Struct, frozen=True):
    """`nodeseal lab enrol` and `nodeseal lab unenrol`: the pods that were named."""

    pods: list[LabPod] = []


class LabMode(Struct, frozen=True):
    """`nodeseal lab mode`."""

    name: str = ""
    """The pod."""
    mode: str = ""
    """ "permissive" or "strict"."""


class LabGone(Struct, frozen=True):
    """`nodeseal lab down`."""

    namespaces: list[str] = []
    """Network namespaces that were removed."""
    processes: list[str] = []
    """What the processes were for that were ended."""
    failures: list[str] = []
    """What could not be removed, and why."""


class DemoStep(Struct, frozen=True):
    """A step of the demonstration."""

    step: str = ""
    """Its letter."""
    title: str = ""
    seconds: float = 0.0
    checks: list[str] = []
    """What was found to hold."""


class Demo(Struct, frozen=True):
    """`nodeseal lab demo`."""

    passed: bool = False
    seconds: float = 0.0
    failure: str | None = None
    """What does not hold."""
    steps: list[DemoStep] = []


class Errors(Struct, frozen=True):
    """Any command that fails before it has found anything."""

    errors: list[str] = []
    """What standard error says, line by line."""


COMMANDS: dict[str, tuple[type[Struct], ...]] = {
    "status": (NodeStatuses, StatusCheck),
    "connections": (NodeConnections,),
    "upgrade-core": (NodeUpgrades,),
    "check": (MachineCheck,),
    "cleanup": (Cleaned,),
    "version": (Version,),
    "mesh check": (MeshCheck,),
    "ca init": (CaMade,),
    "ca show": (CaDescription,),
    "ca renew": (CaRenewed,),
    "ca request": (CaRequested,),
    "ca sign": (CaSigned,),
    "revoke identity": (RevocationsChanged,),
    "revoke serial": (RevocationsChanged,),
    "revoke node": (RevocationsChanged,),
    "revoke list": (RevocationList,),
    "trust add": (TrustAdded,),
    "trust remove": (TrustRemoved,),
    "trust list": (TrustList,),
    "trust status": (TrustStatus,),
    "ca token create": (CaTokenMade,),
    "ca token list": (CaTokens,),
    "ca token revoke": (CaTokensRevoked,),
    "ca status": (CaStatus,),
    "ca key show": (CaServiceKeys,),
    "ca key next": (CaServiceKeys,),
    "ca key switch": (CaServiceKeys,),
    "ca issued": (CaIssued,),
    "ca backup": (CaBackup,),
    "lab up": (LabStatus,),
    "lab status": (LabStatus,),
    "lab enrol": (LabPods,),
    "lab unenrol": (LabPods,),
    "lab mode": (LabMode,),
    "lab down": (LabGone,),
    "lab demo": (Demo,),
}
"""What each command prints; several: by its options, see the first line of each."""
