"""What a node holds of Linux: descriptors, threads, pins, rules, routes, filters, sysctls, listeners, memory.

Two snapshots that were taken at rest, in the same state of the mesh, are equal, whatever happened in between: what is
in one and not in the other was leaked. Names that differ by intent from one core to the next (its generation, inodes,
ports that the kernel chose) are left out of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from nodeseal.linux import bpf, mounts
from nodeseal_lab import agents
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import list_namespaces, run_in
from nodeseal_lab.plan import prefix

HBONE_PORT = 15008

_COMMANDS = {
    "rules": (("ip", "rule", "show"), ("ip", "-6", "rule", "show")),
    "routes": (("ip", "route", "show", "table", "all"), ("ip", "-6", "route", "show", "table", "all")),
    "queueing": (("tc", "qdisc", "show"),),
    "filters": (("nft", "list", "ruleset"), ("iptables-legacy-save",), ("ip6tables-legacy-save",)),
    "interfaces": (("ip", "-oneline", "-brief", "link", "show"),),
    "listeners": (("ss", "--no-header", "--listening", "--tcp", "--numeric"),),
}
_LISTEN = "0A"
_SYSCTLS = ("ipv4", "ipv6")
_COMMAND_SECONDS = 20

TOLERANCES = {
    # Allocators keep some of what they had at the most.
    "agent KiB": 6144,
    "core KiB": 6144,
    # An idle one is kept for some minutes; each pair of workloads has one, and one more with a renewed certificate.
    "core tunnels": 8,
    # Each worker keeps some for the next bulk in plaintext (SPLICE_PIPES_KEPT in cext/src/loop/splice.h).
    "core pipes": 64,
    # The event loop's own pool starts its threads one by one, as it needs them (concurrent.futures.ThreadPoolExecutor).
    "agent threads": (os.cpu_count() or 1) + 4,
}
"""What each size may have grown by, whatever the number of rounds."""


MAY_BE_FEWER = ("core descriptors",)
"""A workload's own sockets in a core (raw, for questions to the kernel) are made when they are first needed, and go
with the workload: a round that has taken it out and in may leave fewer."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one node and its pods. `lines`: category -> line -> how often, the same before and after; `sizes`: what -> its
    size, which may differ within TOLERANCES."""

    lines: dict[str, Counter[str]]
    sizes: dict[str, int]

    def differences(self, after: Resources) -> list[str]:
        """One line each: what is there only once, or in another number, or has grown by more than it may."""
        found = []
        for name in sorted(self.lines.keys() | after.lines.keys()):
            old, new = self.lines.get(name, Counter()), after.lines.get(name, Counter())
            for line in sorted(old.keys() | new.keys()):
                if old[line] < new[line] or (old[line] > new[line] and name not in MAY_BE_FEWER):
                    found.append(f"{name}: {line}: {old[line]} before, {new[line]} after")
        for name, size in self.sizes.items():
            if after.sizes[name] > size + TOLERANCES[name]:
                found.append(f"{name}: {size} before, {after.sizes[name]} after")
        return found


def node_resources(lab: Lab, node: str) -> Resources:
    """What a node holds now. An agent and one core must run there; raises AssertionError otherwise."""
    run_dir = lab.run_dirs[node]
    agent, cores = agents.agent_pid(run_dir), agents.core_pids(run_dir)
    assert agent is not None, f"no agent runs on {node}"
    assert cores, f"no core runs on {node}"
    lines = {
        "cores": Counter({"running": len(cores)}),
        "namespaces": Counter(list_namespaces(prefix(lab.plan.name))),
        "bpf mounts": Counter(str(path) for path in mounts.mount_points("bpf") if path.is_relative_to(lab.directory)),
        "files": Counter(_files(run_dir)),
    }
    places = {pod.name: pod.netns for pod in lab.plan.pods if pod.node == node} | {node: lab.plan.node(node).netns}
    tunnels = frozenset[str]().union(*(run_in(netns, _tunnels) for netns in places.values()))
    for name, pid in (("agent", agent), ("core", cores[0])):
        held = list(_descriptors(pid))
        lines[f"{name} descriptors"] = Counter(_kind(target) for target in held if target not in tunnels)
    # The core's are those that are left in `held`.
    pipes = lines["core descriptors"].pop("pipe", 0)
    for place, netns in places.items():
        for name, counter in run_in(netns, _namespace).items():
            lines[f"{place} {name}"] = counter
    lines["core threads"] = Counter({"running": _threads(cores[0])})
    sizes = {
        "agent KiB": _own_memory(agent),
        "agent threads": _threads(agent),
        "core KiB": _own_memory(cores[0]),
        "core tunnels": len(tunnels.intersection(held)),
        "core pipes": pipes,
    }
    return Resources(lines, sizes)


def _files(run_dir: Path) -> Iterator[str]:
    """Of the run directory, pins included."""
    for path in run_dir.rglob("*"):
        # A log is put aside when it has grown.
        if not path.name.endswith((".log", ".log.1")):
            yield re.sub(r"core-\d+", "core-N", str(path.relative_to(run_dir)))


def _descriptors(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(path.readlink())


def _kind(target: str) -> str:
    """What a descriptor is of, without what differs from one to the next of its kind. (A link that was made and one
    that was found pinned go by two names.)"""
    return re.sub(r":\[\d+\]$", "", re.sub(r"core-\d+", "core-N", target.replace("bpf-link", "bpf_link")))


def _tunnels() -> frozenset[str]:
    """The connections to or from the HBONE port in the network namespace that the caller is in, as descriptors show
    them: "socket:[4711]"."""
    found = set()
    for name in ("tcp", "tcp6"):
        # proc_net_tcp in Linux's documentation; of this thread, not of the process.
        for line in Path("/proc/thread-self/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            ports = {int(end.rpartition(":")[2], 16) for end in fields[1:3]}
            if HBONE_PORT in ports and fields[3] != _LISTEN:
                found.add(f"socket:[{fields[9]}]")
    return frozenset(found)


def _namespace() -> dict[str, Counter[str]]:
    """Of the network namespace that the caller is in."""
    found = {
        name: Counter(line for command in commands for line in _output(command)) for name, commands in _COMMANDS.items()
    }
    found["tcx programs"] = Counter(_tcx_programs())
    found["sysctls"] = Counter(_sysctls())
    return found


def _output(command: tuple[str, ...]) -> Iterator[str]:
    if shutil.which(command[0]) is None:
        return
    result = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    for line in result.stdout.splitlines():
        if command[0] == "ss":
            # The port of a listener on loopback is the kernel's choice.
            yield re.sub(r"(127\.0\.0\.1|\[::1\]|\[::ffff:127\.0\.0\.1\]):\d+", r"\1", " ".join(line.split()[:4]))
        elif not line.startswith("#"):
            # Counters of rules: as iptables-save prints them, and nft.
            yield re.sub(r"\[\d+:\d+\]|packets \d+ bytes \d+", "", " ".join(line.split()))


def _tcx_programs() -> Iterator[str]:
    for _, device in socket.if_nameindex():
        with contextlib.suppress(OSError):
            for _ in bpf.tcx_programs(socket.if_nametoindex(device)):
                yield device


def _sysctls() -> Iterator[str]:
    for family in _SYSCTLS:
        for path in Path("/proc/sys/net", family).rglob("*"):
            if path.is_file():
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    yield f"{path.relative_to('/proc/sys/net')} = {path.read_text().strip()}"


def _threads(pid: int) -> int:
    return psutil.Process(pid).num_threads()


def _own_memory(pid: int) -> int:
    """KiB that the process shares with nobody."""
    return psutil.Process(pid).memory_full_info().uss >> 10
