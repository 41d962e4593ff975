"""Keeping the captured connections of a node's processes from conntrack, and with it from the node's NAT.

What a process of the node dials passes the node's netfilter rules before it comes to the core on lo. Those of
kube-proxy translate the address of a service (DNAT), set bits of the mark and have the packet routed anew by what came
out: it would leave for the endpoint, in plaintext. (bpf/return_host.c drops it then.) Rules of a nat table see only
what conntrack knows. So a rule at the hook `output`, before everybody else's, takes what carries our marks out of it,
`notrack`, in both directions: the process's own packets, the SYNs that the core sends in its stead when they were
parked, and what refuses them (MARK_HOST_RELEASED), and what the core answers (MARK_ANSWER). Packets stay untracked on
lo, up to the socket. For firewalls they are UNTRACKED, not INVALID.

Connections that are to be native are the node's own affair: their SYNs carry no mark, and are tracked and translated as
any other. Only the notice that the core gives of one (MARK_NATIVE, bpf/lib/let_out.h) is untracked.

The core's connections to applications (TO_APP) stay tracked: the application's answers have no mark, and only as
answers of a connection that conntrack knows do they keep clear of rules for new ones. But once bpf/return_host.c has
turned them round to lo, with the mark TO_APP, they are untracked too, so that no rule there puts the mark that
conntrack has of the connection into its place (CONNMARK --restore-mark), and the packet on another way. The core's
connections to other machines stay tracked as well: a firewall must recognize them.

A table of nf_tables holds the rules, by the name that the journal has; where the kernel has no nf_tables, a chain of
the raw table of iptables does. Functions here are to be called inside the namespace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from nodeseal.capture import constants
from nodeseal.capture.errors import CaptureError
from nodeseal.linux import nftables, xtables
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.namespace import in_new_namespace

PRIORITY = -500  # before NF_IP_PRI_RAW_BEFORE_DEFRAG, -450, the first that the kernel names
_NFTABLES = "nftables"
_SENT = (
    nftables.Mark(constants.MARK_HOST, constants.MARK_HOST_MASK),
    nftables.Mark(constants.MARK_HOST_RELEASED, constants.MARK_HOST_MASK),
    nftables.Mark(constants.MARK_ANSWER),
    nftables.Mark(constants.MARK_NATIVE),
)
_LOOPED = (nftables.Mark(constants.MARK_TO_APP),)
_TABLE = "raw"
_BUILTINS = ("OUTPUT", "PREROUTING")


def name_of(run_dir: Path) -> str:
    """What the table or chain of a run directory is called: of two agents in one namespace each has its own."""
    return f"nodeseal-{hashlib.sha256(bytes(run_dir.resolve())).hexdigest()[:8]}"


def choose(versions: Iterable[int]) -> list[str]:
    """What can hold the rules here: ["nftables"], or a program of iptables for each version of IP.

    Tried in a namespace made for it. Raises LinuxError when neither works.
    """
    try:
        in_new_namespace(lambda: nftables.put_untracking("nodeseal", _SENT, _LOOPED, PRIORITY))
    except OSError as error:
        why = error.strerror
    else:
        return [_NFTABLES]
    try:
        programs = [xtables.choose(version) for version in versions]
        for program in programs:
            in_new_namespace(partial(xtables.restore, program, _installation("", "nodeseal")))
    except LinuxError as error:
        raise CaptureError(f"nf_tables: {why}; iptables: {error}") from None
    return programs


def put(holder: str, name: str) -> None:
    """Put the rules in place; harmless when they are. Raises LinuxError."""
    if holder == _NFTABLES:
        try:
            nftables.put_untracking(name, _SENT, _LOOPED, PRIORITY)
        except OSError as error:
            raise CaptureError(f"cannot make the table {name} of nf_tables: {error.strerror}") from None
        return
    xtables.restore(holder, _installation(xtables.save(holder, table=_TABLE), name))


def remove(holder: str, name: str) -> bool:
    """False when there was nothing. Raises LinuxError."""
    if holder == _NFTABLES:
        try:
            return nftables.remove_table(name)
        except OSError as error:
            raise CaptureError(f"cannot remove the table {name} of nf_tables: {error.strerror}") from None
    saved = xtables.save(holder, table=_TABLE)
    if f":{name} " not in saved:
        return False
    xtables.restore(
        holder, "\n".join([f"*{_TABLE}", *_no_jumps(saved, name), f"-F {name}", f"-X {name}", "COMMIT", ""])
    )
    return True


def is_gone(holder: str, name: str) -> bool:
    """Whether somebody took the rules away (`nft flush ruleset`), as far as that is cheap to tell."""
    if holder != _NFTABLES:
        return False
    try:
        return not nftables.table_exists(name)
    except OSError:
        return False


def _installation(saved: str, name: str) -> str:
    rules = [(mark, "") for mark in _SENT] + [(mark, "-i lo ") for mark in _LOOPED]
    lines = [f"*{_TABLE}", f":{name} - [0:0]", f"-F {name}"]
    lines += [
        f"-A {name} {where}-m mark --mark {mark.value:#x}/{mark.mask:#x} -j CT --notrack" for mark, where in rules
    ]
    lines += _no_jumps(saved, name)
    lines += [f"-I {builtin} -j {name}" for builtin in _BUILTINS]
    return "\n".join([*lines, "COMMIT", ""])


def _no_jumps(saved: str, name: str) -> list[str]:
    present = saved.splitlines()
    return [f"-D {builtin} -j {name}" for builtin in _BUILTINS for _ in range(present.count(f"-A {builtin} -j {name}"))]
