"""The rules of the iptables backend, as text for iptables-restore, and what `iptables-save` says of them. No I/O.

How a connection is captured, in a workload's network namespace (marks: bpf/nodeseal.h):

    out  The application's SYN gets the mark CAPTURED in mangle OUTPUT, is routed again, now by the table of captured
         packets to lo, and TPROXY hands it to the core's outbound listener as it arrives there. The core's answer says
         that the connection is the core's: its SYN-ACK, and all that the core sends on it, writes CAPTURED into the
         connection's conntrack entry (CONNMARK), and from there every later packet of the application has its mark.
         An application's own mark (SO_MARK) gives way, before and after.
    in   TPROXY hands the SYN that comes in by a device to the core's inbound listener. The core's SYN-ACK writes CORE
         into the conntrack entry, by which the rest of the handshake is known: with SYN cookies its ACK finds no
         socket and would go to the application's listener.

That the entry is marked by the core's answer, not by the application's or the client's SYN, is what leaves connections
older than enrolment alone: a SYN that strays into one (a client that crashed and uses its port again) changes nothing.

TPROXY (net/netfilter/xt_TPROXY.c) looks for a connection with the packet's four numbers first, then for the listener at
--on-ip and --on-port, and drops the packet when what it found is not transparent or when there is nothing. So it fails
closed by itself: without a listener nothing passes, and no socket of the application's is ever taken for one. A SYN for
a socket in TIME_WAIT replaces it (nf_tproxy_handle_time_wait4).

What the core sends towards an application on lo, and what the application answers, has a mark of its own (TO_APP, or
CAPTURED towards an address of this namespace) and is left to the kernel's own lookup. TO_APP is written into the entry
as well, for an application that puts another mark on the socket that it accepted.

What is to bypass the core is left alone at its SYN: it gets no mark, and conntrack nothing to remember.

Where SYNs are parked, NFQUEUE takes the captured SYN as it arrives at lo, instead of TPROXY, and the core reads it from
there (linux/packet_queue.py). It drops the packet, and when the far side is there sends the same SYN with the mark
RELEASED. That one is routed to lo by its mark and goes to the outbound listener, as CAPTURED. To conntrack it is the
SYN sent again. A queue that nobody has drops what comes to it: there is no --queue-bypass.

A packet of the application that conntrack cannot place (INVALID) has no entry to take the mark from, so one that
carries data is dropped rather than sent past the core. FIN and SYN-ACK are not: they are INVALID when they are the
first that conntrack sees of a connection older than enrolment.

Rules of others come after ours in OUTPUT, and may rewrite the mark or the address and have the packet routed anew. So
what is captured is dropped in mangle POSTROUTING when it leaves by another device than lo. It is known by its conntrack
entry, whatever has become of the packet: CAPTURED or TO_APP, or, from the SYN until the core answers, DIALLED. A SYN
writes that only into an entry that it makes itself (NEW), for the sake of connections older than enrolment. What this
cannot see is a rule that writes another mark into the entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nodeseal.capture import constants
from nodeseal.capture.listeners import INBOUND, OUTBOUND
from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import Excluded

OUTPUT = "NODESEAL_OUTPUT"
PREROUTING = "NODESEAL_PREROUTING"
POSTROUTING = "NODESEAL_POSTROUTING"
_JUMPS = {"OUTPUT": OUTPUT, "PREROUTING": PREROUTING, "POSTROUTING": POSTROUTING}
_LOOPBACK = {4: "127.0.0.1", 6: "::ffff:127.0.0.1"}  # where the core listens, see listeners.py
_ON_THE_LINK = "fe80::/10"  # IPv6 there is nobody's but the link's

_CAPTURED = f"{constants.MARK_CAPTURED:#x}"
_TO_APP = f"{constants.MARK_TO_APP:#x}"
_CORE = f"{constants.MARK_CORE:#x}"
_DIALLED = f"{constants.MARK_DIALLED:#x}"
_RELEASED = f"{constants.MARK_RELEASED:#x}"
_SYN_ACK = "-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK"
_ONLY_SYN = "--tcp-flags FIN,SYN,RST,ACK SYN"
_SYN = f"-p tcp -m tcp {_ONLY_SYN}"
_DATA = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK ACK"

# Name of a counter -> the rule that counts it: (chain, what its line in iptables-save contains).
COUNTERS = {
    "connect_mark_replaced": (OUTPUT, f"--tcp-flags FIN,SYN,RST,ACK SYN -m mark ! --mark {0:#x} "),
    "output_invalid": (OUTPUT, "--ctstate INVALID "),
    "postrouting_held": (POSTROUTING, "-j DROP"),
}


def installation(
    saved: str,
    family: int,
    ports: Mapping[int, int],
    *,
    capturing: bool,
    bypass: Excluded | None = None,
    addresses: Sequence[Address] = (),
    queue: int | None = None,
) -> str:
    """What makes the rules be there as they should be, whatever of them is there already; takes effect as a whole.

    `saved`: the output of `iptables-save -t mangle`; `family`: 4 or 6; `ports`: role -> port of the core's listener on
    the loopback address (a role without one gets nothing new, and what would go there is dropped); `capturing`: False
    when new connections go direct and only captured ones are served; `bypass`: what comes in and is left to the
    application all the same, None for what the rules say of that already; `addresses`: the workload's of this family,
    of which the first has the listener for tunnels; `queue`: number of the queue in which SYNs are parked, None when
    they are not.
    """
    left_alone = _bypass_of(saved) if bypass is None else list(_bypass(family, bypass))
    lines = ["*mangle", *(f":{chain} - [0:0]" for chain in _JUMPS.values())]
    lines += [f"-A {OUTPUT} {rule}" for rule in _output(family, capturing=capturing)]
    prerouting = _prerouting(family, ports, left_alone, addresses, capturing=capturing, queue=queue)
    lines += [f"-A {PREROUTING} {rule}" for rule in prerouting]
    lines += [f"-A {POSTROUTING} {rule}" for rule in _postrouting()]
    for builtin, chain in _JUMPS.items():
        found = _rules_of(saved, builtin)
        jump = _jump(chain)
        if found[:1] == [jump] and found.count(jump) == 1:
            continue
        lines += [f"-D {builtin} {jump}"] * found.count(jump)
        lines.append(f"-I {builtin} 1 {jump}")
    return "\n".join([*lines, "COMMIT", ""])


def removal(saved: str) -> str:
    """What takes the rules away again; "" when there is nothing of them. The rules of others stay as they are."""
    lines: list[str] = []
    for builtin, chain in _JUMPS.items():
        lines += [f"-D {builtin} {_jump(chain)}"] * _rules_of(saved, builtin).count(_jump(chain))
    present = [chain for chain in _JUMPS.values() if re.search(rf"^:{chain} ", saved, re.MULTILINE)]
    lines += [f"-F {chain}" for chain in present] + [f"-X {chain}" for chain in present]
    return "\n".join(["*mangle", *lines, "COMMIT", ""]) if lines else ""


def ports(saved: str) -> dict[int, int]:
    """Role -> port that the rules hand connections to now."""
    found = {}
    for rule in _rules_of(saved, PREROUTING):
        # Tunnels to further addresses are no role's.
        if f"--dport {constants.HBONE_PORT} " not in rule and (match := re.search(r"--on-port (\d+)", rule)):
            found[OUTBOUND if "-i lo" in rule else INBOUND] = int(match[1])
    return found


def counters(saved: str) -> dict[str, int]:
    """Name of a counter -> packets, from the output of `iptables-save -c -t mangle`."""
    return {
        name: sum(
            int(packets)
            for packets in re.findall(rf"^\[(\d+):\d+\] -A {chain} .*{re.escape(text)}", saved, re.MULTILINE)
        )
        for name, (chain, text) in COUNTERS.items()
    }


def _output(family: int, *, capturing: bool) -> Iterator[str]:
    # The core's own, and the application's answers to it.
    yield (f"{_SYN_ACK} -m tcp ! --sport {constants.HBONE_PORT} -m mark --mark {_CORE} -j CONNMARK --set-xmark {_CORE}")
    for mark in (_CORE, _RELEASED):
        yield f"-m mark --mark {mark} -j RETURN"
    for mark in (_TO_APP, _CAPTURED):
        yield f"-m mark --mark {mark} -j CONNMARK --set-xmark {mark}"
        yield f"-m mark --mark {mark} -j RETURN"
    # The namespace's talk with itself, by loopback or by an address of its own.
    yield "-o lo -j RETURN"
    if family == 6:
        yield f"-d {_ON_THE_LINK} -j RETURN"
    if capturing:
        yield f"{_SYN} -m conntrack --ctstate NEW -j CONNMARK --set-xmark {_DIALLED}"
        # The first one counts sockets with a mark of the application's own, which gives way.
        yield f"{_SYN} -m mark ! --mark 0x0 -j MARK --set-xmark {_CAPTURED}"
        yield f"{_SYN} -j MARK --set-xmark {_CAPTURED}"
    else:
        # One that was lost on its way to the core, and goes direct when it is sent again.
        yield f"{_SYN} -m conntrack --ctstate NEW -m connmark --mark {_DIALLED} -j CONNMARK --set-xmark 0x0"
    for mark in (_TO_APP, _CAPTURED):
        yield f"-m connmark --mark {mark} -j MARK --set-xmark {mark}"
    yield f"{_DATA} -m conntrack --ctstate INVALID -j DROP"


def _bypass(family: int, bypass: Excluded) -> Iterator[str]:
    # As iptables-save writes them, so that they can be told from the others.
    for item in bypass.ports:
        yield f"-p tcp -m tcp --dport {item.first}:{item.last} {_ONLY_SYN} -j RETURN"
    for network in bypass.networks:
        if network.version == family:
            yield f"-s {network} {_SYN} -j RETURN"


def _bypass_of(saved: str) -> list[str]:
    return [rule for rule in _rules_of(saved, PREROUTING) if _ONLY_SYN in rule and rule.endswith("-j RETURN")]


def _prerouting(
    family: int,
    ports: Mapping[int, int],
    left_alone: Iterable[str],
    addresses: Sequence[Address],
    *,
    capturing: bool,
    queue: int | None,
) -> Iterator[str]:
    yield f"-i lo -p tcp -m mark --mark {_RELEASED} {_target(family, ports.get(OUTBOUND), _CAPTURED)}"
    yield f"-i lo -m mark ! --mark {_CAPTURED} -j RETURN"
    yield "-i lo -m addrtype --dst-type LOCAL -j RETURN"
    if queue is not None:
        yield f"-i lo {_SYN} -j NFQUEUE --queue-num {queue}"
    yield f"-i lo -p tcp {_target(family, ports.get(OUTBOUND), _CAPTURED)}"
    if family == 6:
        yield f"-s {_ON_THE_LINK} -j RETURN"
    # What opens no connection to this namespace: tunnels, which the core accepts by itself, resets, forwarded packets.
    for address in addresses[1:]:
        yield (
            f"-d {address} -p tcp -m tcp --dport {constants.HBONE_PORT} --tcp-flags RST NONE "
            f"-j TPROXY --on-port {constants.HBONE_PORT} --on-ip {addresses[0]}"
        )
    yield f"-p tcp -m tcp --dport {constants.HBONE_PORT} -j RETURN"
    yield "-p tcp -m tcp --tcp-flags RST RST -j RETURN"
    yield "-m addrtype ! --dst-type LOCAL -j RETURN"
    yield from left_alone
    if capturing:
        yield f"{_SYN} {_target(family, ports.get(INBOUND))}"
    if capturing or INBOUND in ports:
        inbound = _target(family, ports.get(INBOUND))
        yield f"-p tcp -m connmark --mark {_CORE} -m conntrack --ctdir ORIGINAL {inbound}"


def _postrouting() -> Iterator[str]:
    for mark in (_CAPTURED, _TO_APP, _DIALLED):
        yield f"! -o lo -m connmark --mark {mark} -j DROP"
    for mark in (_CAPTURED, _TO_APP, _RELEASED):
        # A copy (TEE): conntrack knows nothing of it.
        yield f"! -o lo -m mark --mark {mark} -j DROP"


def _target(family: int, port: int | None, mark: str = "") -> str:
    if port is None:
        return "-j DROP"
    keep = f" --tproxy-mark {mark}/0xffffffff" if mark else ""
    return f"-j TPROXY --on-port {port} --on-ip {_LOOPBACK[family]}{keep}"


def _jump(chain: str) -> str:
    return f"-p tcp -j {chain}"


def _rules_of(saved: str, chain: str) -> list[str]:
    """The rules of a chain, in order, without counters."""
    return re.findall(rf"^(?:\[\d+:\d+\] )?-A {chain} (.*?)\s*$", saved, re.MULTILINE)
