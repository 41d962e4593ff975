"""Rules of nf_tables that a test adds to a namespace, and what its conntrack knows."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from nodeseal.lab.namespaces import run_in

_numbers = itertools.count()


def nft(netns: str, text: str) -> str:
    """Gives `nft` commands in the namespace of this name; what it prints."""
    command = ["nsenter", f"--net={Path('/run/netns') / netns}", "nft", "-f", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{text}: {done.stderr}"
    return done.stdout


def ruleset(netns: str) -> str:
    """All rules of the namespace."""
    return nft(netns, "list ruleset\n")


@contextlib.contextmanager
def rule(netns: str, chain: str, *statements: str) -> Iterator[None]:
    """Meanwhile the namespace has this rule, in a chain of its own. `chain`: its type, hook and priority, such as "type
    filter hook output priority 0"."""
    table = f"inet test{next(_numbers)}"
    nft(netns, f"table {table} {{ chain one {{ {chain};\n{chr(10).join(statements)}\n}}; }}\n")
    try:
        yield
    finally:
        nft(netns, f"delete table {table}\n")


def tracked(netns: str) -> set[tuple[str, int]]:
    """Where the connections go that conntrack knows: (address, port) of each TCP entry's original destination."""

    def dump() -> set[tuple[str, int]]:
        found = set()
        with NFCTSocket(nfgen_family=socket.AF_UNSPEC) as conntrack:
            for entry in conntrack.dump():
                original = entry.get_attr("CTA_TUPLE_ORIG")
                ip, ports = original.get_attr("CTA_TUPLE_IP"), original.get_attr("CTA_TUPLE_PROTO")
                address = ip.get_attr("CTA_IP_V4_DST") or ip.get_attr("CTA_IP_V6_DST")
                if ports.get_attr("CTA_PROTO_NUM") == 6:
                    found.add((address, ports.get_attr("CTA_PROTO_DST_PORT")))
        return found

    return run_in(netns, dump)
