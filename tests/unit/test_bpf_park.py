"""park_loopback.c by BPF_PROG_TEST_RUN: packets in, verdict, counters and records out.

Resets are in tests/netns/test_parking.py, which has sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodeseal.capture import constants
from support.bpf import BOTH_FAMILIES, PEER_ADDRESS, PEER_ADDRESS_6, Bench, ethernet, ipv4, ipv6, tcp
from support.namespaces import needs_root
from support.parking import SYN as PARKED_SYN
from support.parking import Ring

pytestmark = needs_root

PASS = 0xFFFFFFFF  # TC_ACT_UNSPEC
DROP = 2  # TC_ACT_SHOT
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
IPV6 = 0x86DD
OPTIONS = bytes.fromhex("020405b40402080a0000000000000000") + bytes(20)

OWN, OWN_6 = "10.93.0.5", "fd93::5"


def with_options(header: bytes, options: bytes) -> bytes:
    """TCP's header, longer."""
    return header[:12] + bytes([(20 + len(options)) // 4 << 4]) + header[13:] + options


def v4(payload: bytes, **options: object) -> bytes:
    return ipv4(payload, source=OWN, destination=PEER_ADDRESS, **options)  # type: ignore[arg-type]


def v6(payload: bytes, *headers: tuple[int, bytes]) -> bytes:
    return ipv6(payload, *headers, source=OWN_6, destination=PEER_ADDRESS_6)


SYNS = {
    "ipv4": v4(tcp(80, SYN)),
    "ipv6": v6(tcp(80, SYN)),
    "with ECN": v4(tcp(80, SYN | 0xC0)),
    "all options": v4(with_options(tcp(80, SYN), OPTIONS + bytes(4)), options=b"\1" * 40),
    "all options, ipv6": v6(with_options(tcp(80, SYN), OPTIONS + bytes(4))),
}
PASSING = {
    "data": v4(tcp(80, PSH | ACK) + b"x" * 100),
    "data, ipv6": v6(tcp(80, PSH | ACK) + b"x" * 100),
    "fin": v4(tcp(80, FIN | ACK)),
    "syn and ack": v4(tcp(80, SYN | ACK)),
    "rst of nobody": v4(tcp(80, RST)),
    "icmp": v4(bytes(8), protocol=1),
    "icmpv6": ipv6(bytes(8), protocol=58),
    "behind an extension header": v6(tcp(80, SYN), (60, bytes(7))),
}
UNREADABLE = {
    "fragment": v4(tcp(80, SYN), fragment=0x2000),
    "later fragment": v4(tcp(80, SYN), fragment=0x0003),
    "cut off": v4(tcp(80, SYN)[:12]),
    "options cut off": v4(tcp(80, SYN)[:12] + b"\xf0" + tcp(80, SYN)[13:]),
    "ipv6 cut off": v6(tcp(80, SYN)[:12]),
}


def frame(packet: bytes) -> bytes:
    return ethernet(packet, 0x0800 if packet[0] >> 4 == 4 else IPV6)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, "park_loopback", settings=BOTH_FAMILIES | constants.SETTING_PARK)


@pytest.fixture
def ring(bench: Bench) -> Iterator[Ring]:
    with Ring(bench.ring) as ring:
        yield ring


@pytest.mark.parametrize("what", SYNS)
def test_the_headers_of_a_syn_are_parked_and_it_goes_no_further(bench: Bench, ring: Ring, what: str) -> None:
    packet = SYNS[what]
    assert bench.packet(frame(packet + b"payload"), mark=constants.MARK_CAPTURED) == (DROP, {})
    (record,) = ring.read()
    assert (record.kind, record.mark) == (PARKED_SYN, constants.MARK_RELEASED)
    # The length in the header is the packet's with its payload: only the checksums and this are made anew.
    assert record.packet == (packet + b"payload")[: len(packet)]


@pytest.mark.parametrize("mark", [0, constants.MARK_RELEASED, constants.MARK_TO_APP, constants.MARK_CORE, 0x4000])
def test_other_marks_pass(bench: Bench, ring: Ring, mark: int) -> None:
    for packet in SYNS.values():
        assert bench.packet(frame(packet), mark=mark) == (PASS, {})
    assert ring.read() == []


@pytest.mark.parametrize("what", PASSING)
def test_what_opens_nothing_or_is_not_read_as_tcp_passes(bench: Bench, ring: Ring, what: str) -> None:
    assert bench.packet(frame(PASSING[what]), mark=constants.MARK_CAPTURED) == (PASS, {})
    assert ring.read() == []


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_dropped(bench: Bench, ring: Ring, what: str) -> None:
    assert bench.packet(frame(UNREADABLE[what]), mark=constants.MARK_CAPTURED) == (DROP, {"park_unreadable": 1})
    assert ring.read() == []


def test_a_full_ring_drops_and_counts(bench: Bench, ring: Ring) -> None:
    packet = frame(SYNS["ipv4"])
    room = constants.RING_BYTES // 144
    for _ in range(room):
        assert bench.packet(packet, mark=constants.MARK_CAPTURED) == (DROP, {})
    assert bench.packet(packet, mark=constants.MARK_CAPTURED) == (DROP, {"park_full": 1})
    assert len(ring.read()) == room
    assert bench.packet(packet, mark=constants.MARK_CAPTURED) == (DROP, {})


def test_without_the_setting_everything_passes() -> None:
    with ExitStack() as stack:
        bench = Bench(stack, "park_loopback")
        ring = stack.enter_context(Ring(bench.ring))
        for packet in (*SYNS.values(), *PASSING.values(), *UNREADABLE.values()):
            assert bench.packet(frame(packet), mark=constants.MARK_CAPTURED) == (PASS, {})
        assert ring.read() == []
