"""What nodeseal could leave behind on a machine, listed before and after the demo.

Every category is a set of lines. What differs afterwards is either ours (it carries the lab's name, an address or
interface of the lab, or one of its BPF programs) or somebody else's: on a busy machine containers come and go
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from nodeseal.capture.backends.pod_ebpf import CGROUP_LINKS
from nodeseal.capture.bpf.runtime import DIRECTORY
from nodeseal.linux import bpf, mounts
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import list_namespaces, run_in
from nodeseal_lab.plan import prefix
from nodeseal_lab.processes import MARKER, ProcessRecord

_BPFFS = Path("/sys/fs/bpf")
_COMMANDS = {
    "routing rules": ("ip", "-details", "rule", "show"),
    "routing rules (IPv6)": ("ip", "-6", "-details", "rule", "show"),
    "routes": ("ip", "route", "show", "table", "all"),
    "routes (IPv6)": ("ip", "-6", "route", "show", "table", "all"),
    "interfaces": ("ip", "-oneline", "-brief", "link", "show"),
    "traffic control": ("tc", "qdisc", "show"),
    "nftables": ("nft", "list", "ruleset"),
}
_POD_COMMANDS = (
    ("ip", "rule", "show"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "rule", "show"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("tc", "qdisc", "show"),
    ("tc", "filter", "show", "dev", "eth0", "ingress"),
    ("iptables-nft-save", "-t", "mangle"),
    ("iptables-legacy-save", "-t", "mangle"),
)
# A date, and tables and the kernel's own chains, which are there from the first look on.
_IPTABLES_FRAME = re.compile(r"#|\*|COMMIT|:\S+ ACCEPT ")
_POD_SYSCTLS = ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv4/conf/eth0/accept_local", "ipv6/fwmark_reflect")


@dataclass(frozen=True, slots=True)
class HostState:
    """Category -> its lines, each of which occurs once."""

    lines: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> HostState:
        """The host as it is now. A command that is not installed gives an empty category."""
        state = {name: _output(command) for name, command in _COMMANDS.items()}
        state["network namespaces"] = list_namespaces()
        state["mounts"] = [line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        state["/sys/fs/bpf"] = [str(path) for path in _walk(_BPFFS)]
        state["cgroup programs"] = [f"program {number} of the cgroup tree" for number in attached_programs()]
        return cls({name: frozenset(lines) for name, lines in state.items()})

    @property
    def size(self) -> int:
        return sum(len(lines) for lines in self.lines.values())

    def changes(self, after: HostState) -> list[str]:
        """One line per difference: "routes: + 10.0.0.0/8 ..." for what came, "-" for what went."""
        found = []
        for name in sorted(self.lines.keys() | after.lines.keys()):
            old, new = self.lines.get(name, frozenset()), after.lines.get(name, frozenset())
            found += [f"{name}: - {line}" for line in sorted(old - new)]
            found += [f"{name}: + {line}" for line in sorted(new - old)]
        return found


def pod_state(lab: Lab, pod: str) -> frozenset[str]:
    """What enrolment changes in a pod's namespace: rules, routes, traffic control, and sysctls."""
    netns = lab.plan.pod(pod).netns

    def read() -> frozenset[str]:
        lines = [line for command in _POD_COMMANDS for line in _output(command) if not _IPTABLES_FRAME.match(line)]
        lines += [f"TCX program {number} on eth0" for number in _tcx_programs("eth0")]
        settings = [(key, Path("/proc/sys/net", key)) for key in _POD_SYSCTLS]
        lines += [f"{key} = {path.read_text().strip()}" for key, path in settings if path.exists()]
        return frozenset(lines)

    return run_in(netns, read)


def our_traces(lab: Lab, programs: Iterable[int]) -> tuple[str, ...]:
    """Texts that only the lab's own things carry. `programs`: the numbers of the BPF programs that its nodes pinned."""
    names = (prefix(lab.plan.name), str(lab.directory), "10.77.", "fd77:", "nsbr0", "0x4e53")
    return (*names, *(f"program {number} of the cgroup tree" for number in programs))


def pinned_programs(lab: Lab) -> set[int]:
    """The numbers of the BPF programs that the lab's nodes have attached to the cgroup tree: none of a node that
    captures by iptables, or whose agent was never ready."""
    found = set()
    for run_dir in lab.run_dirs.values():
        for name in CGROUP_LINKS:
            try:
                link = bpf.pinned(run_dir / DIRECTORY / name)
            except FileNotFoundError:
                continue
            try:
                found.add(bpf.link_program(link))
            finally:
                os.close(link)
    return found


def attached_programs() -> list[int]:
    """The BPF programs of our kinds in the root of a cgroup2 tree."""
    found: list[int] = []
    for path in mounts.mount_points("cgroup2"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for _, attach_type in CGROUP_LINKS.values():
                    found += bpf.cgroup_programs(fd, attach_type)
            finally:
                os.close(fd)
    return sorted(set(found))


def _tcx_programs(device: str) -> list[int]:
    """The programs at a device's ingress; none where the kernel has no TCX."""
    with contextlib.suppress(OSError):
        return bpf.tcx_programs(socket.if_nametoindex(device))
    return []


def processes_of(lab: Lab, records: Iterable[ProcessRecord]) -> list[str]:
    """The processes that come from one of the records, or that have the lab's directory among their arguments:
    "1234 python3 -m ..."."""
    found = []
    markers = {record.id for record in records}
    for one in psutil.process_iter(["cmdline", "environ", "status"]):
        arguments = one.info["cmdline"] or []
        inherited = (one.info["environ"] or {}).get(MARKER) in markers
        named = any(f"{lab.directory}/" in argument for argument in arguments)
        if (inherited or named) and one.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{one.pid} {' '.join(arguments)}")
    return found


def _output(command: tuple[str, ...]) -> list[str]:
    if shutil.which(command[0]) is None:
        return []
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def _walk(directory: Path) -> Iterable[Path]:
    with contextlib.suppress(OSError):
        for path in sorted(directory.iterdir()):
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from _walk(path)
