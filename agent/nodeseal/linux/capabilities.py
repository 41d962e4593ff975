"""What this process may do (capabilities(7))."""

from __future__ import annotations

import os
from pathlib import Path

from nodeseal.linux.errors import LinuxError

# Number -> name. CAP_SYS_ADMIN enters namespaces and mounts, and implies CAP_BPF.
_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}
_CAP_BPF = 39


def check_privileges(*, bpf: bool = True) -> None:
    """Raises LinuxError that names what this process lacks. `bpf`: whether it is to load BPF programs."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    missing = [name for number, name in _CAPABILITIES.items() if not effective >> number & 1]
    if bpf and "CAP_SYS_ADMIN" in missing and not effective >> _CAP_BPF & 1:
        missing.append("CAP_BPF")
    if missing:
        who = "root without all capabilities" if os.geteuid() == 0 else f"user {os.geteuid()}"
        raise LinuxError(f"capture needs root's privileges: {who} lacks {', '.join(missing)}; run as root")
