"""What /proc/net tells of the network namespace of the calling thread (proc_pid_net(5))."""

from __future__ import annotations

import contextlib
from pathlib import Path

_LISTEN = "0A"


def listening_ports() -> frozenset[int]:
    """The ports that TCP listens on, at whatever address."""
    ports = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path("/proc/thread-self/net", name).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTEN:
                    ports.add(int(local.rpartition(":")[2], 16))
    return frozenset(ports)
