"""The numbers of bpf/nodeseal.h that Python needs. A unit test compares them with the header."""

from __future__ import annotations

MARK_CAPTURED = 0x4E530001
MARK_TO_APP = 0x4E530002
MARK_CORE = 0x4E530003
HBONE_PORT = 15008

STATE_CAPTURE = 1
STATE_LEAVE = 2

# Bits of the `families` map, by the version of an address.
FAMILIES = {4: 1, 6: 2}

# Index in the `counters` map -> the name under which EbpfCapture.errors() shows it.
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
)

# The workload's own routing table and rules, inside its namespace. 0x4e53 is "NS".
ROUTE_TABLE = 0x4E53
RULE_PRIORITY = 100
