"""Why there is no mutual TLS, why a workload is not enrolled, why a connection was refused.

"No mTLS" always carries its reason: a value, a metric label and a CLI line, the same word in all three. Every word is
printable ASCII of at most 95 bytes, because the splice core keeps one in 96 bytes with its terminating zero.
"""

from enum import StrEnum


class WhyPlaintext(StrEnum):
    """Why a connection that is allowed runs without mutual TLS."""

    DESTINATION_NOT_IN_MESH = "destination-not-in-mesh"
    """Outbound: the mesh state has no workload and no service at that address."""
    DESTINATION_NOT_ENROLLED = "destination-not-enrolled"
    """Outbound: the workload is known, and its node has not enrolled it (or is taking it out)."""
    SOURCE_NOT_IN_MESH = "source-not-in-mesh"
    """Inbound: the mesh state has no workload at the client's address."""
    SOURCE_NOT_ENROLLED = "source-not-enrolled"
    """Inbound: the client is a workload that its node has not enrolled."""
    SOURCE_SHARES_ADDRESS = "source-shares-address"
    """Inbound: the client is a process of a node where others are enrolled; from outside nothing tells them apart."""
    SOURCE_JOINING = "workload-joining"
    """Inbound: the client is enrolled; this workload is joining or leaving, so the client's node may not know of it."""
    OPENED_BEFORE_ENROLMENT = "opened-before-enrolment"
    """Both ends are enrolled now, but the connection is older than that and is left alone."""
    APPLICATION_MARK = "application-mark"
    """Outbound: the application set a mark (SO_MARK) of its own on the socket, which keeps it from being captured."""
    FROM_NODE = "from-node"
    """Inbound: the client is the node itself (the kubelet's probes), or another address of `node_addresses`."""
    EXCLUDED_PORT = "excluded-port"
    """The workload's `exclude` in the mesh state has the port."""
    EXCLUDED_RANGE = "excluded-range"
    """The workload's `exclude` in the mesh state has a range of addresses that the other side's is in."""


class WhyNotEnrolled(StrEnum):
    """Why a workload of this node is not (fully) enrolled."""

    NOT_WANTED = "not-wanted"
    """The mesh state does not ask for it."""
    PENDING = "pending"
    """It is asked for and the agent has not come to it yet."""
    NO_NETNS = "no-network-namespace"
    """The mesh state does not say in which network namespace the workload runs."""
    CGROUP_GONE = "cgroup-gone"
    """The cgroup that the mesh state names does not exist: the service does not run."""
    NAMESPACE_GONE = "namespace-gone"
    """The network namespace that the mesh state names does not exist."""
    ADDRESS_MISMATCH = "address-mismatch"
    """The workload's address is not on any interface of its network namespace."""
    ADDRESS_IN_USE = "address-in-use"
    """Another process holds port 15008 of the workload's address."""
    JOINING = "joining"
    """Captured and published; other nodes are given time to see it."""
    LEAVING = "leaving"
    """Withdrawn; still captured until other nodes have seen it and its connections have ended."""
    FAILED = "failed"
    """Enrolling failed and was undone; the detail says why."""


class WhyRefused(StrEnum):
    """Why a connection is refused."""

    STRICT = "strict"
    """Plaintext to a workload whose mode is strict."""
    SOURCE_IS_ENROLLED = "source-is-enrolled"
    """New plaintext from an enrolled workload to an enrolled workload: it should have come through a tunnel."""
    WRONG_ADDRESS = "wrong-address"
    """A tunnel asks for an address that is not this workload's."""
    MESH_PORT = "mesh-port"
    """The port belongs to the mesh itself; forwarding to it would make a loop."""
    UNKNOWN_WORKLOAD = "unknown-workload"
    """The mesh state does not know the workload that the connection is captured for."""
    NO_SUCH_PORT = "no-such-port"
    """The service has no such port, or the process of a node is not reached at it."""
    NO_ENDPOINT = "no-endpoint"
    """The service has no endpoint."""
    UNKNOWN_PEER = "unknown-peer"
    """The peer's certificate holds no identity that can be read."""
    WRONG_TRUST_DOMAIN = "wrong-trust-domain"
    """The peer's identity is of another trust domain."""
    IDENTITY_MISMATCH = "identity-mismatch"
    """The peer comes from a workload's address with an identity that is not that workload's."""


class WhyLimited(StrEnum):
    """Which limit a connection met that was refused before anybody decided about it. The core has the same words."""

    CONNECTIONS = "limit-connections"
    """The workload has as many as it may have at once."""
    RATE = "limit-rate"
    """The workload has had as many new ones in this second as it may have."""
    MEMORY = "limit-memory"
    """The core holds as much memory for the workload as it may."""
    DESCRIPTORS = "limit-descriptors"
    """The core is about to run out of file descriptors, and the workload has its part of them."""
    QUESTIONS = "limit-questions"
    """Too many of the workload's new connections wait for decisions."""
