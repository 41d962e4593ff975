"""What a capture backend does not promise, one sentence each."""

from __future__ import annotations

from nodeseal.capture.journal import BackendName

EARLY = "A connection is made before the far side has accepted it (connect: early): the kernel has no NFQUEUE."
"""That of iptables where it cannot park."""
RESERVATIONS: dict[BackendName, tuple[str, ...]] = {
    "ebpf": (
        "A socket whose application set a mark of its own (SO_MARK) is captured only towards enrolled workloads.",
    ),
    "iptables": (
        "Probes from the node's own addresses are refused by strict workloads: probe by a command (exec), or exclude a "
        "port that answers nothing but probes.",
        "What workloads exclude outbound goes through the core, in plaintext; it fails while no core runs.",
        "on_failure: open has no effect: closed.",
        "mesh_networks and outside_mesh have no effect: what is outside the mesh goes through the core, too.",
        "plaintext: native has no effect: plaintext goes through the core, in both directions.",
        "What an application bears of its peer's silence (its keepalive, TCP_USER_TIMEOUT) is not heard.",
        "Every connection of an enrolled namespace takes an entry of the machine's conntrack table "
        "(nf_conntrack_max): when it is full, new connections are dropped.",
        "Who deletes conntrack entries in an enrolled namespace (conntrack -F) lets the next packet of a captured "
        "connection out in plaintext.",
        "An application that writes to a connection more than 24 days after its core died sends that packet in "
        "plaintext; until then it gets a reset.",
        "Who deletes the rules in an enrolled namespace (iptables -F) ends the capture of new connections.",
        "A rule in an enrolled namespace that writes marks of its own into conntrack's entries (CONNMARK) can take a "
        "connection past the core, in plaintext.",
        "Processes of the node itself (host in the mesh state) are not captured.",
        "A family (IPv4, IPv6) in which the mesh state gives a workload no address is not captured.",
        "An address without a route cannot be dialled, not even a service's.",
        "A client that crashed and comes back from the port of a connection older than enrolment waits until that one "
        "has ended.",
        "Without the journal (run_dir/capture.json) cleanup does not find the rules.",
    ),
}
