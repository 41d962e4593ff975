"""The kernel settings that capture changes in a workload's network namespace."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from nodeseal.capture.journal import Entry
from nodeseal.capture.removal import Step
from nodeseal.linux import sysctls
from nodeseal.linux.namespace import NetworkNamespace

# All found to be needed by leaving them out, with SYN cookies and without, rp_filter strict on every device (see
# tests/netns/test_capture_settings.py). accept_local and src_valid_mark are not: what is looped through lo keeps the
# route that it was sent by, so the kernel never validates its source again.
POD = {
    # The application's accepted socket takes the mark of the core's SYN (TO_APP), so that its answers, which are
    # addressed to the far client, follow the rule back to the core. Without it the SYN-ACK leaves for the real client.
    # It is the same setting for IPv6.
    "net/ipv4/tcp_fwmark_accept": "1",
}
"""What a namespace of a workload's own needs."""
POD_OF_VERSION = {
    # The same for what the kernel answers without a socket: the RST of a closed port. Without it the core's connection
    # to a port where nobody listens hangs instead of being refused.
    4: {"net/ipv4/fwmark_reflect": "1"},
    6: {"net/ipv6/fwmark_reflect": "1"},
}
"""The same, by the version of its addresses."""


def of_pod(entry: Entry) -> dict[str, str]:
    """What a workload with a namespace of its own needs there: path below /proc/sys -> value."""
    wanted = dict(POD)
    for version in entry.versions:
        wanted |= POD_OF_VERSION[version]
    return wanted


def plan(entry: Entry, wanted: Mapping[str, str]) -> None:
    """Enter into the journal's entry what has to change for these. What it holds already stays: it tells how things
    were before nodeseal came. To be called inside the namespace. Raises LinuxError.
    """
    entered = {change.path for change in entry.sysctls}
    entry.sysctls += sysctls.plan({path: value for path, value in wanted.items() if path not in entered})


def removals(entry: Entry, namespace: NetworkNamespace, where: str) -> list[Step]:
    """Puts back what was. `where`: whose settings they are, for what the steps say."""
    return [
        (f"setting {change.path} of {where}", partial(namespace.run, partial(sysctls.restore, change)))
        for change in entry.sysctls
    ]
