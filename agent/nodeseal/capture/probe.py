"""What the machine and this process have to offer: asked before anything is changed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nodeseal.capture.errors import CaptureError
from nodeseal.linux import syscalls
from nodeseal.linux.namespace import NAMED

T = TypeVar("T")

# capabilities(7): number -> name. CAP_SYS_ADMIN enters namespaces and mounts, and implies CAP_BPF.
_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}
_CAP_BPF = 39


def find_cgroup() -> Path:
    """The root of the cgroup v2 tree. Raises CaptureError when none is mounted."""
    found = syscalls.mounts("cgroup2")
    if not found:
        raise CaptureError(
            _hidden_cgroup()
            or "no cgroup v2 tree is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified); on a host with "
            "cgroup v1 it may stand beside it"
        )
    return found[0]


def check_privileges(*, bpf: bool = True) -> None:
    """Raises CaptureError that names what this process lacks. `bpf`: whether it is to load BPF programs."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    missing = [name for number, name in _CAPABILITIES.items() if not effective >> number & 1]
    if bpf and "CAP_SYS_ADMIN" in missing and not effective >> _CAP_BPF & 1:
        missing.append("CAP_BPF")
    if missing:
        who = "root without all capabilities" if os.geteuid() == 0 else f"user {os.geteuid()}"
        raise CaptureError(f"capture needs root's privileges: {who} lacks {', '.join(missing)}; run as root")


def check_cgroup(cgroup: Path) -> Path:
    """The same path. Raises CaptureError when it is not the root of a cgroup v2 tree."""
    roots = syscalls.mounts("cgroup2")
    here = f", {roots[0]}" if roots else ""
    if not (cgroup / "cgroup.controllers").is_file():
        hidden = "" if roots else _hidden_cgroup()
        remedy = hidden or f"leave `cgroup` out to have it found, or name the root of the v2 tree{here}"
        raise CaptureError(f"{cgroup} is not a cgroup v2 directory: {remedy}")
    if roots and cgroup.resolve() not in roots:
        # Programs that are attached there see what runs below it, and nothing else.
        raise CaptureError(f"{cgroup} is a part of the cgroup v2 tree: leave `cgroup` out, or name its root{here}")
    return cgroup


def _hidden_cgroup() -> str:
    """What to do when the machine has a cgroup v2 tree and this process has none; "" when the machine has none."""
    try:
        found = syscalls.mounts_of("1", "cgroup2")
    except OSError:
        return ""
    if not found:
        return ""
    # It mounts /sys anew, without what was mounted in it (ip-netns(8)); so does everything that changes mounts.
    own = _named_namespace()
    return (
        f"no cgroup v2 tree is mounted in the mount namespace of this process, though the machine has one at "
        f"{found[0]}: 'ip netns exec' hides it; say 'nsenter --net={own}' in its place"
    )


def _named_namespace() -> Path:
    """The name of the network namespace that this process is in, as `ip netns` has it, or what stands for one."""
    with contextlib.suppress(OSError):
        own = Path("/proc/self/ns/net").stat().st_ino
        for path in sorted(NAMED.iterdir()):
            if path.stat().st_ino == own:
                return path
    return NAMED / "NAME"


def in_new_namespace(action: Callable[[], T]) -> T:
    """Call `action` in a network namespace made for it, gone afterwards. Its result or exception comes back."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            syscalls.new_network_namespace()
            results.append(action())
        except BaseException as error:
            errors.append(error)

    # A thread that ends at once, and the namespace with it: the caller's must stay where it is.
    thread = threading.Thread(target=body, name="nodeseal-probe", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results[0]


def possible_cpus() -> int:
    """How many values a per-CPU map has under a key: one for each CPU that may ever come ("0-3", "0", "0,2-3")."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").rsplit("-", 1)[-1]) + 1
