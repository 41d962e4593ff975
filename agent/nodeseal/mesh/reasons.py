"""Why there is no mutual TLS, why a workload is not enrolled, why a connection was refused, what is wrong with a node.

"No mTLS" always carries its reason: a value, a metric label and a CLI line, the same word in all three. Every word is
printable ASCII of at most 95 bytes, because the splice core keeps one in 96 bytes with its terminating zero.

docs/words.md is made of this file (`make reference`), so a word has its meaning and what to do beside it.
"""

from enum import StrEnum
from typing import Self


class Word(StrEnum):
    """A word, what it means, and what to do about it: "" where it is as it should be. Both are for people."""

    _value_: str
    meaning: str
    remedy: str

    def __new__(cls, word: str, meaning: str, remedy: str = "") -> Self:
        """A member, of its three parts."""
        self = str.__new__(cls, word)
        self._value_ = word
        self.meaning, self.remedy = meaning, remedy
        return self


class WhyPlaintext(Word):
    """Why a connection that is allowed runs without mutual TLS."""

    DESTINATION_NOT_IN_MESH = (
        "destination-not-in-mesh",
        "Outbound: the mesh state has no workload and no service at that address.",
        "If it is one of yours, add it to the mesh state.",
    )
    OUTSIDE_MESH = (
        "outside-mesh",
        "Outbound: the address is certain to be outside the mesh, by `mesh_networks` or `outside_mesh`. The connection "
        "is never captured, and needs neither agent nor core.",
        "If it should be captured, correct these settings, or have the address in the mesh state.",
    )
    DESTINATION_NOT_ENROLLED = (
        "destination-not-enrolled",
        "Outbound: the workload is known, and its node has not published it as enrolled (or is taking it out).",
        "If it should be: `enrolled: true`, then `nodeseal status` on both nodes says what is in the way.",
    )
    SOURCE_NOT_IN_MESH = (
        "source-not-in-mesh",
        "Inbound: the mesh state has no workload at the client's address.",
        "`mode: strict` refuses such clients.",
    )
    SOURCE_NOT_ENROLLED = (
        "source-not-enrolled",
        "Inbound: the client is a workload that its node has not enrolled.",
        "Enrol it; `mode: strict` refuses it until then.",
    )
    SOURCE_SHARES_ADDRESS = (
        "source-shares-address",
        "Inbound: the client is a process of a node where others are enrolled (`host`); from outside nothing tells "
        "them apart.",
        "Enrol every process of that node that dials, or use `mode: strict`.",
    )
    SOURCE_JOINING = (
        "workload-joining",
        "Inbound: the client is enrolled; this workload is joining or leaving, so the client's node may not know of "
        "it.",
        "Nothing: it ends with `settle`.",
    )
    OPENED_BEFORE_ENROLMENT = (
        "opened-before-enrolment",
        "Both ends are enrolled now, but the connection is older than that and is left alone.",
        "Let the application connect again when it suits.",
    )
    APPLICATION_MARK = (
        "application-mark",
        "Outbound: the application set a mark (SO_MARK) of its own on the socket, which keeps it from being captured, "
        "unless it dials an enrolled workload.",
        "Take the mark away if the connection should be captured.",
    )
    OPEN_ON_FAILURE = (
        "open-on-failure",
        "The workload is `on_failure: open`, and neither an agent nor a core ran when the connection was opened.",
        "Let the application connect again when it suits.",
    )
    FROM_NODE = (
        "from-node",
        "Inbound: the client is the node itself (the kubelet's probes), or another address of `node_addresses`.",
        "Shorten `node_addresses` if that is too much.",
    )
    EXCLUDED_PORT = (
        "excluded-port",
        "The workload's `exclude` in the mesh state has the port.",
        "Take it out there if it should be captured.",
    )
    EXCLUDED_RANGE = (
        "excluded-range",
        "The workload's `exclude` in the mesh state has a range of addresses that the other side's is in.",
        "Take it out there if it should be captured.",
    )


class WhyNotEnrolled(Word):
    """Why a workload of this node is not (fully) enrolled."""

    NOT_WANTED = (
        "not-wanted",
        "The mesh state does not ask for it.",
        "`enrolled: true` in the mesh state, if it should be.",
    )
    PENDING = (
        "pending",
        "It is asked for and the agent has not come to it yet.",
        "Wait; if it stays, the line below the table says what it waits for.",
    )
    NO_NETNS = (
        "no-network-namespace",
        "The mesh state does not say in which network namespace the workload runs.",
        "Give it `netns` (or `host`) in the mesh state.",
    )
    CGROUP_GONE = (
        "cgroup-gone",
        "The cgroup that the mesh state names does not exist: the service does not run.",
        "Start the service, or correct `host.cgroup`.",
    )
    NAMESPACE_GONE = (
        "namespace-gone",
        "The network namespace that the mesh state names does not exist.",
        "Start the workload, or correct `netns`.",
    )
    ADDRESS_MISMATCH = (
        "address-mismatch",
        "The workload's address is not on any interface of its network namespace.",
        "Correct `address` or `netns`.",
    )
    ADDRESS_IN_USE = (
        "address-in-use",
        "Another process holds port 15008 of the workload's address, or another host has the address.",
        "Stop what listens there; no two hosts may have one address.",
    )
    JOINING = (
        "joining",
        "Captured and published; other nodes are given time to see it.",
        "Nothing: it is enrolled after `settle`.",
    )
    LEAVING = (
        "leaving",
        "Withdrawn; still captured until other nodes have seen it and its connections have ended.",
        "Nothing: it ends with its last connection.",
    )
    FAILED = (
        "failed",
        "Enrolling failed and was undone; it is tried again.",
        "The line below the table says why.",
    )


class WhyRefused(Word):
    """Why a connection is refused."""

    STRICT = (
        "strict",
        "Plaintext to a workload whose mode is strict.",
        "Enrol the client, exclude the port, or use `mode: permissive`.",
    )
    SOURCE_IS_ENROLLED = (
        "source-is-enrolled",
        "New plaintext from an enrolled workload to an enrolled workload: it should have come through a tunnel.",
        "Look at `nodeseal status` on the client's node: it does not capture, or does not see this node's publication.",
    )
    WRONG_ADDRESS = (
        "wrong-address",
        "A tunnel asks for an address that is not this workload's.",
        "Look at what the peer is: nodeseal asks for no other.",
    )
    CONTESTED_ADDRESS = (
        "contested-address",
        "Two workloads claim the address in the mesh state, and one of them is enrolled: it is neither's. Or two "
        "Services of Kubernetes claim it with the same port.",
        "`nodeseal status` names both; take it away from the one that does not have it.",
    )
    MESH_PORT = (
        "mesh-port",
        "The port belongs to the mesh itself (15001, 15006, 15008); forwarding to it would make a loop.",
        "Let the application use another port.",
    )
    UNKNOWN_WORKLOAD = (
        "unknown-workload",
        "The mesh state does not know the workload that the connection is captured for.",
        "Nothing, while it leaves; else add it to the mesh state.",
    )
    NO_SUCH_PORT = (
        "no-such-port",
        "The service has no such port, or the process of a node is not reached at it.",
        "Add it to `ports`.",
    )
    NO_ENDPOINT = (
        "no-endpoint",
        "The service has no endpoint (of the family that was dialled).",
        "Add one to `endpoints`; in Kubernetes, see why no pod of the Service is ready.",
    )
    NO_LOCAL_ENDPOINT = (
        "no-local-endpoint",
        "The Service's traffic policy is `Local`, and it has no endpoint on the node. `connect()` waits, as with "
        "kube-proxy.",
        "Have a pod of it on every node, or use the policy `Cluster`.",
    )
    OUTSIDE_SOURCE_RANGES = (
        "outside-source-ranges",
        "The Service's `loadBalancerSourceRanges` do not have the workload's address. `connect()` waits, as with "
        "kube-proxy.",
        "Add it there, or dial the Service's cluster IP.",
    )
    UNKNOWN_PEER = (
        "unknown-peer",
        "The peer's certificate holds no identity that can be read.",
        "Give the peer a certificate with one SPIFFE id.",
    )
    WRONG_TRUST_DOMAIN = (
        "wrong-trust-domain",
        "The peer's identity is of another trust domain, which the mesh is not federated with, or not any more.",
        "Federate with that domain, or give the peer an identity of this one.",
    )
    IDENTITY_MISMATCH = (
        "identity-mismatch",
        "The peer comes from a workload's address with an identity that is not that workload's.",
        "If its `service_account` was changed just now, wait; else look at who has the address.",
    )


class WhyLimited(Word):
    """Which limit a connection met that was refused before anybody decided about it. The core has the same words."""

    CONNECTIONS = (
        "limit-connections",
        "The workload has as many as it may have at once.",
        "Raise `limits.connections`, or find who opens them.",
    )
    RATE = (
        "limit-rate",
        "The workload has had as many new ones in this second as it may have.",
        "Raise `limits.new_connections`, or find who opens them.",
    )
    MEMORY = (
        "limit-memory",
        "The core holds as much memory for the workload as it may.",
        "Raise `limits.memory`, or find who does not read.",
    )
    DESCRIPTORS = (
        "limit-descriptors",
        "The core is about to run out of file descriptors, and the workload has its part of them: four times as many "
        "as are left.",
        "Raise the hard limit (systemd: LimitNOFILE) or `fs.nr_open`.",
    )
    QUESTIONS = (
        "limit-questions",
        "Too many of the workload's new connections wait for decisions.",
        "If it stays, look at the node's CPU: `core.decisions` in `nodeseal status -o json`.",
    )
    HANDSHAKES = (
        "limit-handshakes",
        "A peer on port 15008 had not proven who it is, and had to go because others came. It was the oldest of the "
        "address, or of the IPv6 network, that had most of them.",
        "See who it is: `nodeseal connections` lists the sources. Workloads' own connections are not concerned.",
    )


class Level(StrEnum):
    """How bad a problem is."""

    WARNING = "warning"
    """Nothing that was asked for is lacking yet, or it may be meant."""
    ERROR = "error"
    """Something that was asked for is lacking."""


class ProblemWord(Word):
    """What is wrong with a node, as `nodeseal status` lists it and `nodeseal status --check` counts it."""

    level: Level

    def __new__(cls, word: str, level: Level, meaning: str, remedy: str) -> Self:
        """A member, of its four parts."""
        self = str.__new__(cls, word)
        self._value_ = word
        self.level, self.meaning, self.remedy = level, meaning, remedy
        return self

    NO_AGENT = (
        "no-agent",
        Level.ERROR,
        "No agent answers for the run directory: nothing is enrolled or renewed until one does.",
        "Start the agent; its log says why it ended.",
    )
    AGENT_STARTING = (
        "agent-starting",
        Level.WARNING,
        "The agent has been started and is not ready yet; the line says what it does. What it found runs on.",
        "Wait; its log names what takes longer than a second.",
    )
    CORE_DOWN = (
        "core-down",
        Level.ERROR,
        "No core runs, or it does not answer: new connections wait, or fail.",
        "The agent starts one by itself; if it stays, see core.log.",
    )
    CORE_CRASHED = (
        "core-crashed",
        Level.WARNING,
        "A core crashed in the last ten minutes and was started again: its connections were reset.",
        "See core.log.",
    )
    CORE_OUTDATED = (
        "core-outdated",
        Level.WARNING,
        "Another core is installed than the one that runs.",
        "`nodeseal upgrade-core`: no connection is cut.",
    )
    CAPTURE_FALLBACK = (
        "capture-fallback",
        Level.WARNING,
        "`capture: auto` found that eBPF cannot be used, and captures by iptables, which promises less.",
        "Give the machine what it lacks, or say `capture: iptables` if that is meant.",
    )
    CONNECT_EARLY = (
        "connect-early",
        Level.WARNING,
        "The mesh state or the configuration asks for `connect: truthful`, and the workload does not have it: what it "
        "dials is accepted before anybody has answered.",
        "Let eBPF capture it, and upgrade the core; or say `connect: early` if that is meant.",
    )
    PLAINTEXT_HELD = (
        "plaintext-held",
        Level.WARNING,
        "Packets of captured connections were about to leave in plaintext, and were dropped: a rule of the node, or in "
        "a pod, rewrites their marks or addresses. Those connections hang.",
        "Look for rules that set marks or translate addresses: "
        "[what they may do](host-workloads.md#the-nodes-own-rules).",
    )
    NAT_APPLIES = (
        "nat-applies",
        Level.WARNING,
        "No rule could be made that keeps what processes of the node dial from the node's own NAT. What that sends "
        "elsewhere is dropped, not sent in plaintext.",
        "Give the kernel nf_tables, or install iptables.",
    )
    MESH_STATE = (
        "mesh-state",
        Level.ERROR,
        "The mesh state has a mistake or cannot be read: the last good one stays in force as a whole.",
        "Correct the place that is named.",
    )
    NO_MESH_STATE = (
        "no-mesh-state",
        Level.ERROR,
        "The mesh state has a mistake or cannot be read, and there never was a good one: nothing is enrolled.",
        "Correct the place that is named.",
    )
    MESH_STATE_AWAY = (
        "mesh-state-away",
        Level.WARNING,
        "The API server of Kubernetes does not answer, or refuses something: what was known of the mesh counts, and "
        "new pods and changes are not seen.",
        "The line says what is missing: a right (verb and resource), a kind of objects, the server itself.",
    )
    MESH_OBJECT = (
        "mesh-object",
        Level.WARNING,
        "An object of Kubernetes says something that cannot be used: a label or an annotation of nodeseal's, a "
        "document in the ConfigMap `nodeseal-mesh`; or a pod is to be enrolled and cannot be yet. The rest of the mesh "
        "state is in force.",
        "Correct what the line names: [what is read](kubernetes.md).",
    )
    PUBLICATION = (
        "publication",
        Level.ERROR,
        "A publication (`enrolled/<node>.yaml`) cannot be read, or names what is not its node's. The mesh state is in "
        "force.",
        "Look at that node: its agent writes the file anew.",
    )
    UNREAD_FILE = (
        "unread-file",
        Level.WARNING,
        "Something in the mesh directory looks like a part of the mesh state and is not read: a file of another "
        "suffix, files in a sub directory.",
        "Move or rename it.",
    )
    NOT_PUBLISHED = (
        "not-published",
        Level.ERROR,
        "This node cannot write its publication: other nodes do not see what it enrols, or what it has taken out.",
        "Make `enrolled/` writable for the agent.",
    )
    FORMER_PUBLICATION = (
        "former-publication",
        Level.WARNING,
        "What this node published under a former name, or in another directory, is still there: other nodes believe "
        "it.",
        "Remove that file if its node is no more.",
    )
    PLUGIN_MISSING = (
        "plugin-missing",
        Level.ERROR,
        "The network plugin that has pods start once they are enrolled is not in place: what a new pod dials in its "
        "first second is in plaintext.",
        "Correct what is named: [pods at their start](kubernetes-pod-start.md).",
    )
    POD_LET_THROUGH = (
        "pod-let-through",
        Level.WARNING,
        "A pod started before it could be enrolled, since `on_failure` of `cni` is open, or open for its namespace: "
        "what it dialled at first was in plaintext. The line goes when it is enrolled, or gone.",
        "Start it again if that matters; see why no agent answered.",
    )
    NOT_ENROLLED = (
        "not-enrolled",
        Level.ERROR,
        "A workload of this node should be enrolled and is not.",
        "See the reason in the table, and the words for it below.",
    )
    NODE_UNKNOWN = (
        "node-unknown",
        Level.ERROR,
        "The mesh state wants workloads enrolled on a node that has published nothing: its name is misspelt, its agent "
        "has never run, or `enrolled/` is not shared with it. Traffic with them is in plaintext.",
        "Correct `node`, start that agent, or share (copy) `enrolled/` among all nodes.",
    )
    PEER_NOT_ENROLLED = (
        "peer-not-enrolled",
        Level.WARNING,
        "Another node has not enrolled a workload of its own that should be: traffic with it is in plaintext.",
        "`nodeseal status` on that node says why.",
    )
    WAS_ENROLLED = (
        "was-enrolled",
        Level.WARNING,
        "A workload was enrolled on this node and runs here still, but the mesh state does not give it to this node "
        "any more: its traffic is in plaintext.",
        "Correct the mesh state; say `enrolled: false` there if it is meant.",
    )
    OTHER_CA = (
        "other-ca",
        Level.ERROR,
        "Another node has another CA than this one: no connection between their workloads works.",
        "Give both the CA of one `nodeseal ca init`, or put both roots into the `root.pem` of each.",
    )
    PROBES_REFUSED = (
        "probes-refused",
        Level.WARNING,
        "Strict workloads are captured by iptables, whose rules cannot tell the node's own connections: they refuse "
        "the kubelet's probes, and it ends the pods.",
        "See [probes with iptables](operating.md#probes-where-iptables-captures).",
    )
    HANDSHAKE_FAILED = (
        "handshake-failed",
        Level.WARNING,
        "A workload of this node could not make a tunnel to a peer in the last ten minutes, because one of the two "
        "refused the other's certificate, or the peer does not speak TLS as it should.",
        "Compare the CAs and the clocks of both nodes; the line has the reason.",
    )
    CERTIFICATE_NOT_RENEWED = (
        "certificate-not-renewed",
        Level.WARNING,
        "A workload's certificate was due and could not be renewed; it is tried again.",
        "Correct what the line says before the certificate expires.",
    )
    CERTIFICATE_EXPIRED = (
        "certificate-expired",
        Level.ERROR,
        "A workload's certificate has expired: no new tunnel of it works.",
        "Look at the CA directory and at the clock.",
    )
    CA_EXPIRES = (
        "ca-expires",
        Level.WARNING,
        "The CA's intermediate or root has less than 60 days left (of one with a short life, less than a third).",
        "`nodeseal ca renew`; [for the root](operating.md#the-life-of-the-ca) another CA.",
    )
    CA_EXPIRED = (
        "ca-expired",
        Level.ERROR,
        "The CA's intermediate or root has expired: no certificate is renewed.",
        "`nodeseal ca renew`; [for the root](operating.md#the-life-of-the-ca) another CA.",
    )
    CA_NOT_USED = (
        "ca-not-used",
        Level.WARNING,
        "The CA directory, or what a tool has delivered, has changed and cannot be used as it is. The agent goes on "
        "with what it read before, and could not start again.",
        "Correct what the line says.",
    )
    CA_AWAY = (
        "ca-away",
        Level.WARNING,
        "The issuer does not answer. Certificates go on as long as they are valid; none is renewed meanwhile.",
        "Look at the issuer, and at the way there. It is asked again and again.",
    )
    NODE_UNPROVEN = (
        "node-unproven",
        Level.ERROR,
        "The certificate service does not take this node for what it is: its token or its own certificate is not "
        "valid any more, as after a long absence. No certificate is renewed.",
        "`nodeseal ca token create` on the service; put the token into the agent's `token_file`.",
    )
    KEYS_ON_DISK = (
        "keys-on-disk",
        Level.ERROR,
        "A tool writes private keys into a directory that is on a disk.",
        "Mount a tmpfs there, and have the tool make other keys.",
    )
    CA_EXPOSED = (
        "ca-exposed",
        Level.ERROR,
        "Others than root can read a key of the CA, or change what is in its directory. An agent that starts refuses "
        "such a key.",
        "Correct owner and mode; make another key with `nodeseal ca renew` if somebody may have read it.",
    )
    TRUST_ANCHOR_UNUSABLE = (
        "trust-anchor-unusable",
        Level.WARNING,
        "A trust anchor of the mesh state is no certificate by which cores verify anybody: of no CA, or weak. The "
        "others count.",
        "`nodeseal trust remove`, or correct the file that has it.",
    )
    TRUST_NOT_GIVEN = (
        "trust-not-given",
        Level.ERROR,
        "The core did not take the trust anchors: it goes on verifying peers by those that it had.",
        "The agent tries again; if it stays, see core.log.",
    )
    BUNDLE_UNREAD = (
        "bundle-unread",
        Level.ERROR,
        "The bundle of a trust domain that the mesh is federated with cannot be read, or not be fetched from its "
        "endpoint: what it said before counts. If it was never read, the domain's workloads are refused.",
        "Correct what the line says.",
    )
    BUNDLE_EMPTY = (
        "bundle-empty",
        Level.WARNING,
        "The bundle of a trust domain that the mesh is federated with has no trust anchor that can be used: the domain "
        "has revoked all of its keys, and its workloads are refused.",
        "Ask who runs the domain. Take it out of the mesh state if it is no more.",
    )
    IDENTITY_REVOKED = (
        "identity-revoked",
        Level.ERROR,
        "A workload of this node is enrolled with an identity that is revoked, or the node itself is: its tunnels are "
        "cut, peers refuse new ones, and no certificate is issued for it.",
        "Give it another service account, or take the revocation back (`nodeseal revoke ... --undo`).",
    )
    REVOCATION_LIST_UNREAD = (
        "revocation-list-unread",
        Level.ERROR,
        "A revocation list that the configuration names (`crls`) cannot be read: what it said before stays revoked.",
        "Correct the file that is named.",
    )
    REVOCATION_LIST_STALE = (
        "revocation-list-stale",
        Level.WARNING,
        "A revocation list (`crls`) is older than its issuer says that it may be. What it says stays revoked.",
        "Bring the present one.",
    )
    REVOCATIONS_NOT_IN_FORCE = (
        "revocations-not-in-force",
        Level.ERROR,
        "A core did not take what is revoked, or is of a former version that knows of no revocation: tunnels with what "
        "is revoked go on there.",
        "The agent tries again; end an old core that must not go on.",
    )
    RUN_DIRECTORY_EXPOSED = (
        "run-directory-exposed",
        Level.WARNING,
        "Others than root can look into the run directory; one that they can change is refused.",
        "`chmod 700` it.",
    )
    UPKEEP_FAILED = (
        "upkeep-failed",
        Level.WARNING,
        "A change of an enrolled workload could not be put in place (its publication, its capture); it is tried again.",
        "Correct what the line says.",
    )
    ADDRESS_CLAIMED_TWICE = (
        "address-claimed-twice",
        Level.ERROR,
        "Two workloads claim one address in the mesh state: it counts for neither. As long as one of them is enrolled, "
        "connections to it are refused, and so is plaintext from it.",
        "Take it away from the one that does not have it.",
    )
    PLAINTEXT_FROM_ENROLLED = (
        "plaintext-from-enrolled",
        Level.WARNING,
        "Plaintext of an enrolled workload arrived for one of this node's and was refused: the client's node did not "
        "know whom it dialled. It dialled an address that the mesh state does not have, which is translated on the way "
        "or is a further one of the workload.",
        "Add the address that is dialled to the workload's `addresses`, or make it a service.",
    )
    ADDRESS_NOT_ATTRIBUTED = (
        "address-not-attributed",
        Level.WARNING,
        "A workload's namespace has an address that the mesh state does not give to it. Peers do not know whose it is: "
        "what they dial there comes in plaintext, and enrolled ones are refused.",
        "Add it to the workload's `addresses`, or take it off the device.",
    )
    ADDRESS_ABSENT = (
        "address-absent",
        Level.WARNING,
        "The mesh state gives a workload a further address that no device of its namespace has, or that cannot be used "
        "there: what peers dial there fails.",
        "Take it out of the mesh state, or put it on a device; within a minute it is found.",
    )
    FAMILY_NOT_CAPTURED = (
        "family-not-captured",
        Level.WARNING,
        "A workload has an address of a family (IPv4, IPv6) in which the mesh state gives it none, and this family "
        "cannot be captured: connections over it pass by nodeseal.",
        "Give it `addresses` of both.",
    )
    LIMIT_REACHED = (
        "limit-reached",
        Level.WARNING,
        "Connections of a workload were refused for a limit in the last ten minutes.",
        "See the words that begin with limit-.",
    )
