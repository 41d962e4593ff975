"""The numbers of bpf/nodeseal.h that Python needs. A unit test compares them with the header."""

from __future__ import annotations

MARK_CAPTURED = 0x4E530001
MARK_TO_APP = 0x4E530002
MARK_CORE = 0x4E530003
MARK_ANSWER = 0x4E530004
MARK_DIALLED = 0x4E530005
MARK_RELEASED = 0x4E530006
MARK_NATIVE = 0x4E530007
MARK_ADMITTED = 0x4E530008
MARK_HOST_RELEASED = 0x4E550000
MARK_HOST = 0x4E540000
MARK_HOST_MASK = 0xFFFFFF00
HOST_NUMBERS = range(1, 256)  # of the workloads that are processes of the node
HBONE_PORT = 15008

# Bits of the values of the `own` map.
OWN_PRESENT = 1
OWN_ATTRIBUTED = 2

STATE_CAPTURE = 1
STATE_LEAVE = 2

# Bits of the `settings` map: by the version of an address, and for one that is open on failure.
FAMILIES = {4: 1, 6: 2}
SETTING_OPEN = 4
SETTING_PARK = 8
SETTING_PARK_IN = 16
SETTING_NATIVE = 32
RING_BYTES = 131072

# Index in the `counters` map -> the name under which NodeCapture.errors() shows it.
COUNTERS = (
    "connect_mark_failed",
    "connect_unbind_failed",
    "connect_foreign_mark",
    "lookup_no_listener",
    "lookup_assign_failed",
    "steer_truncated",
    "steer_fragment",
    "steer_route_failed",
    "steer_no_listener",
    "steer_assign_failed",
    "steer_revisit_failed",
    "steer_headers",
    "connect_mark_replaced",
    "connect_excluded",
    "steer_excluded",
    "steer_from_node",
    "mark_kept",
    "loop_unknown",
    "loop_note_failed",
    "return_failed",
    "egress_held",
    "loop_mark_restored",
    "connect_outside",
    "park_unreadable",
    "park_full",
    "park_reset_held",
    "dial_unwatched",
    "dial_untold",
    "dial_slow",
    "native_unnoted",
    "native_lost",
    "native_total_lost",
    "native_held",
)

# The map `bypass`, see bpf/lib/bypass.h. A scope of ranges is that of ports plus one.
SCOPE_PEER = 1
SCOPE_NODE = 2
SCOPE_OUTBOUND_PORT = 3
SCOPE_OUTBOUND_RANGE = 4
SCOPE_INBOUND_PORT = 5
SCOPE_INBOUND_RANGE = 6
SCOPE_EXTENT = 7
PEER_ALONE = 1
PEER_SHARED = 2
EXTENT_INSIDE = 1
EXTENT_OUTSIDE = 2
NODE_LOCAL = 1
NODE_TRUSTED = 2
BYPASS_KEY_SIZE = 40

# Of native connections, see bpf/lib/natives.h.
NATIVE_MAPS = (
    "let_go",
    "let_out",
    "let_in",
    "natives",
    "native_totals",
    "native_open",
    "native_log",
    "native_told",
    "native_wanted",
)
NATIVE_LOG = 256
NATIVE_OPENED = 1
NATIVE_CLOSED = 2
NATIVE_EXCLUDED_PORT = 1
NATIVE_EXCLUDED_RANGE = 2
NATIVE_OUTSIDE = 3
NATIVE_DECIDED = 4
NATIVE_MARK = 5
NATIVE_OPEN = 6
NATIVE_NODE = 7

# The workload's own routing table and rules, inside its namespace. 0x4e53 is "NS".
ROUTE_TABLE = 0x4E53
RULE_PRIORITY = 100
# Of the queue in which rules park SYNs: the first that is free.
QUEUES = range(ROUTE_TABLE, ROUTE_TABLE + 16)


def host_mark(number: int) -> int:
    """The mark of the connections that the process of the node with this number dials."""
    return MARK_HOST | number


def host_released_mark(number: int) -> int:
    """The mark of its SYNs that were parked and are released."""
    return MARK_HOST_RELEASED | number
