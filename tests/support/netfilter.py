"""Rules of nf_tables that a test adds to a namespace, and what its conntrack knows."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from nodeseal_lab.namespaces import run_in

Address = tuple[str, int]

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


def tracked(netns: str) -> set[tuple[Address, Address]]:
    """The TCP connections that conntrack knows: where each comes from and went to at first, (address, port) both."""

    def dump() -> set[tuple[Address, Address]]:
        with NFCTSocket(nfgen_family=socket.AF_UNSPEC) as conntrack:
            originals = [entry.get_attr("CTA_TUPLE_ORIG") for entry in conntrack.dump()]
        return {
            (_end(one, "SRC"), _end(one, "DST"))
            for one in originals
            if one.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM") == socket.IPPROTO_TCP
        }

    return run_in(netns, dump)


def _end(original: Any, which: str) -> Address:
    ip, ports = original.get_attr("CTA_TUPLE_IP"), original.get_attr("CTA_TUPLE_PROTO")
    address = ip.get_attr(f"CTA_IP_V4_{which}") or ip.get_attr(f"CTA_IP_V6_{which}")
    return address, ports.get_attr(f"CTA_PROTO_{which}_PORT")
