"""Network namespaces for tests: made with unique names, joined by veth pairs, looked into, and removed again.

    with Namespaces() as net:
        pod, router = net.create("pod"), net.create("router")
        net.join(pod, "eth0", "10.0.1.2/24", router, "pod0", "10.0.1.1/24")
        pod.ip("route", "add", "default", "via", "10.0.1.1")

The host's own namespace is never touched. Every namespace gets strict rp_filter before its devices come, as hardened
hosts have it, and no duplicate address detection: IPv6 addresses count at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nodeseal.linux import bpf
from nodeseal.linux.namespace import NetworkNamespace

T = TypeVar("T")

# All that capture might change, and nothing that changes by itself.
CHANGEABLE_SETTINGS = r"^net\.(ipv4|mptcp|ipv6\.fwmark|netfilter\.nf_conntrack_tcp)"
_numbers = itertools.count()

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")


def iptables_rules() -> list[str]:
    """All rules and chains of both flavours and families in the calling thread's namespace, the kernel's own chains
    left out."""
    found = []
    for program in ("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"):
        lines = _output(f"{program}-save").splitlines()
        found += [f"{program}: {line}" for line in lines if line.startswith("-A ") or " - [" in line]
    return found


class Namespace:
    """One network namespace, by its name under /run/netns."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name
        self._inside = NetworkNamespace.open(name)
        self.inode = self._inside.inode

    def run(self, action: Callable[[], T]) -> T:
        """Call `action` in a thread inside the namespace."""
        return self._inside.run(action)

    def ip(self, *arguments: str) -> str:
        """The `ip` command in the namespace; its output. Raises CalledProcessError."""
        return _output("ip", "-n", self.name, *arguments)

    def add_address(self, device: str, text: str) -> None:
        """Give a device an address with its prefix."""
        self.ip("address", "add", text, "dev", device)

    def tc(self, *arguments: str) -> str:
        """The `tc` command in the namespace; its output."""
        return _output("tc", "-n", self.name, *arguments)

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """What `ip -json` prints, parsed."""
        return json.loads(_output("ip", "-n", self.name, "-json", *arguments) or "[]")  # type: ignore[no-any-return]

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in the namespace."""
        return subprocess.Popen(["nsenter", f"--net={self.path}", *command], text=True, **options)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read a setting ("net/ipv4/ip_forward"), after writing it when a value is given."""

        def body() -> str:
            path = Path("/proc/sys") / name
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

        return self.run(body)

    # ---- predicates

    def route_exists(self, table: int | str, text: str = "", *, version: int = 4) -> bool:
        """Whether a routing table of IPv4 (or 6) holds a route whose line contains `text`."""
        try:
            lines = self.ip(f"-{version}", "route", "show", "table", str(table)).splitlines()
        except subprocess.CalledProcessError:  # "FIB table does not exist"
            return False
        return any(text in line for line in lines)

    def rule_exists(self, mark: int, *, version: int = 4) -> bool:
        """Whether a rule of IPv4 (or 6) asks for this mark."""
        rules = self.json(f"-{version}", "rule", "show")
        return any(int(str(rule.get("fwmark", "0")), 0) == mark for rule in rules)

    def filter_exists(self, device: str, name: str = "nodeseal") -> bool:
        """Whether a tc filter of this name stands at a device's ingress."""
        return name in self.tc("filter", "show", "dev", device, "ingress")

    def tcx_programs(self, device: str, attach_type: int = bpf.ATTACH_TCX_INGRESS) -> list[int]:
        """The numbers of the TCX programs at a device's ingress or egress; none where the kernel has no TCX."""

        def body() -> list[int]:
            with contextlib.suppress(OSError):
                return bpf.tcx_programs(socket.if_nametoindex(device), attach_type)
            return []

        return self.run(body)

    def qdisc_exists(self, device: str, kind: str = "clsact") -> bool:
        """Whether a device has a qdisc of this kind."""
        return f"qdisc {kind} " in self.tc("qdisc", "show", "dev", device)

    def state(self) -> str:
        """Everything that capture might change, as text: two of them compare equal when nothing is left."""
        devices = [link["ifname"] for link in self.json("link", "show")]
        parts = [
            self.ip(family, *what)
            for family in ("-4", "-6")
            for what in (("rule", "show"), ("route", "show", "table", "all"))
        ]
        for device in devices:
            parts.append(self.tc("qdisc", "show", "dev", device))
            parts += [self.tc("filter", "show", "dev", device, way) for way in ("ingress", "egress")]
            programs = [self.tcx_programs(device), self.tcx_programs(device, bpf.ATTACH_TCX_EGRESS)]
            parts.append(f"{device}: TCX programs {programs}")
        settings = _output("nsenter", f"--net={self.path}", "sysctl", "-a", "--pattern", CHANGEABLE_SETTINGS)
        parts += self.run(iptables_rules)
        # Those of iptables stay when they are empty.
        tables = _output("nsenter", f"--net={self.path}", "nft", "list", "tables").splitlines()
        parts += [table for table in tables if table.startswith("table inet ")]
        return "\n".join(parts) + settings

    def close(self) -> None:
        """Remove the namespace."""
        self._inside.close()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True, timeout=20)


class Namespaces:
    """Makes namespaces and removes them at the end."""

    def __init__(self) -> None:
        self.all: list[Namespace] = []

    def create(self, label: str) -> Namespace:
        """A new namespace with lo up and strict rp_filter; the name holds `label`, the process id and a number."""
        name = f"nst-{label}-{os.getpid()}-{next(_numbers)}"
        _output("ip", "netns", "add", name)
        namespace = Namespace(name)
        self.all.append(namespace)
        namespace.sysctl("net/ipv4/conf/all/rp_filter", 1)
        namespace.sysctl("net/ipv4/conf/default/rp_filter", 1)
        namespace.sysctl("net/ipv6/conf/default/accept_dad", 0)
        namespace.ip("link", "set", "lo", "up")
        return namespace

    def join(self, one: Namespace, device: str, address: str, other: Namespace, peer: str, peer_address: str) -> None:
        """A veth pair between two namespaces, with addresses ("10.0.0.1/24", "fd00::1/64"), up."""
        one.ip("link", "add", device, "type", "veth", "peer", "name", peer, "netns", other.name)
        for namespace, name, text in ((one, device, address), (other, peer, peer_address)):
            namespace.add_address(name, text)
            namespace.ip("link", "set", name, "up")

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in self.all:
            with contextlib.suppress(OSError):
                namespace.close()
        self.all.clear()


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
