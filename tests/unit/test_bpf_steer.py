"""steer_ingress.c by BPF_PROG_TEST_RUN: packets in, verdict and counters out.

bpf_sk_assign answers EOPNOTSUPP outside a real ingress, so a packet that would be given to the listener ends as a drop
that is counted as steer_assign_failed; tests/netns/test_capture_connections.py shows the assignment itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from support.bpf import DEVICE_ADDRESS, Bench, ethernet, ipv4, tcp
from support.namespaces import needs_root

pytestmark = needs_root

PASS = 0xFFFFFFFF  # TC_ACT_UNSPEC
DROP = 2  # TC_ACT_SHOT
SYN, RST, ACK, FIN = 0x02, 0x04, 0x10, 0x01
MORE_FRAGMENTS = 0x2000

ASSIGNED = {"steer_assign_failed": 1}
NONE: dict[str, int] = {}


@dataclass(frozen=True)
class Case:
    description: str
    packet: bytes
    verdict: int
    counters: dict[str, int]


CASES = [
    Case("SYN", ethernet(ipv4(tcp(8080, SYN))), DROP, ASSIGNED),
    Case("SYN with ECN bits", ethernet(ipv4(tcp(8080, SYN | 0xC0))), DROP, ASSIGNED),
    Case("SYN to the mesh port", ethernet(ipv4(tcp(15008, SYN))), PASS, NONE),
    Case("SYN from the mesh port", ethernet(ipv4(tcp(8080, SYN, source=15008))), DROP, ASSIGNED),
    Case("ACK of a cookie", ethernet(ipv4(tcp(8080, ACK))), DROP, ASSIGNED),
    Case("ACK of a cookie with data", ethernet(ipv4(tcp(8080, ACK | 0x08) + b"GET /")), DROP, ASSIGNED),
    Case("ACK to the mesh port", ethernet(ipv4(tcp(15008, ACK))), PASS, NONE),
    Case("SYN and ACK", ethernet(ipv4(tcp(8080, SYN | ACK))), PASS, NONE),
    Case("RST", ethernet(ipv4(tcp(8080, RST))), PASS, NONE),
    Case("RST and ACK", ethernet(ipv4(tcp(8080, RST | ACK))), PASS, NONE),
    Case("no flags", ethernet(ipv4(tcp(8080, 0))), PASS, NONE),
    Case("FIN alone", ethernet(ipv4(tcp(8080, FIN))), PASS, NONE),
    Case(
        "SYN behind IPv4 options", ethernet(ipv4(tcp(8080, SYN), options=b"\x94\x04\0\0" + b"\1" * 36)), DROP, ASSIGNED
    ),
    Case("mesh port behind IPv4 options", ethernet(ipv4(tcp(15008, SYN), options=b"\1" * 40)), PASS, NONE),
    Case(
        "SYN in a first fragment", ethernet(ipv4(tcp(8080, SYN), fragment=MORE_FRAGMENTS)), DROP, {"steer_fragment": 1}
    ),
    Case(
        "first fragment too small for the flags",
        ethernet(ipv4(tcp(8080, SYN)[:8], fragment=MORE_FRAGMENTS)),
        DROP,
        {"steer_fragment": 1},
    ),
    Case("later fragment", ethernet(ipv4(tcp(8080, SYN), fragment=MORE_FRAGMENTS | 64)), PASS, NONE),
    Case("last fragment", ethernet(ipv4(tcp(8080, SYN), fragment=64)), PASS, NONE),
    Case("TCP header cut off", ethernet(ipv4(tcp(8080, SYN)[:12])), PASS, {"steer_truncated": 1}),
    Case("nothing behind the IPv4 header", ethernet(ipv4(b"")), PASS, {"steer_truncated": 1}),
    Case("options that reach past the end", ethernet(b"\x4f" + ipv4(tcp(8080, SYN))[1:]), PASS, {"steer_truncated": 1}),
    Case("header length below 20", ethernet(b"\x44" + ipv4(tcp(8080, SYN))[1:]), PASS, {"steer_truncated": 1}),
    Case("version 5", ethernet(b"\x55" + ipv4(tcp(8080, SYN))[1:]), PASS, {"steer_truncated": 1}),
    Case("UDP", ethernet(ipv4(struct.pack("!HHHH", 5353, 8080, 8, 0), protocol=17)), PASS, NONE),
    Case("ICMP", ethernet(ipv4(b"\x08\0\xf7\xff\0\0\0\0", protocol=1)), PASS, NONE),
    Case("ARP", ethernet(b"\0\1\x08\0\6\4\0\1" + bytes(20), kind=0x0806), PASS, NONE),
    Case("IPv6", ethernet(b"\x60" + bytes(59), kind=0x86DD), PASS, NONE),
]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, "steer_ingress")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.description)
def test_packet(bench: Bench, case: Case) -> None:
    with bench.listener(1):
        assert bench.packet(case.packet) == (case.verdict, case.counters)


@pytest.mark.parametrize("flags", [SYN, ACK])
def test_without_a_listener_what_opens_a_connection_is_dropped(bench: Bench, flags: int) -> None:
    assert bench.packet(ethernet(ipv4(tcp(8080, flags)))) == (DROP, {"steer_no_listener": 1})


def test_without_a_listener_the_mesh_port_still_passes(bench: Bench) -> None:
    assert bench.packet(ethernet(ipv4(tcp(15008, SYN)))) == (PASS, {})


@pytest.mark.parametrize("flags", [SYN, ACK])
def test_port_where_the_application_listens_is_steered(bench: Bench, flags: int) -> None:
    with bench.listener(1), bench.namespace.run(lambda: socket.create_server((DEVICE_ADDRESS, 8080))):
        assert bench.packet(ethernet(ipv4(tcp(8080, flags)))) == (DROP, ASSIGNED)


@pytest.mark.parametrize("flags", [SYN, ACK, ACK | FIN])
def test_packet_of_an_established_connection_passes(bench: Bench, flags: int) -> None:
    with bench.listener(1), bench.connection(8080) as (_, source_port):
        packet = ethernet(ipv4(tcp(8080, flags, source=source_port), source=DEVICE_ADDRESS))
        assert bench.packet(packet) == (PASS, {})


def test_syn_that_meets_time_wait_is_noted_for_the_lookup(bench: Bench) -> None:
    with bench.listener(1):
        with bench.connection(8080) as (accepted, source_port):
            accepted.shutdown(socket.SHUT_WR)  # first to close: TIME_WAIT is on this side
        packet = ethernet(ipv4(tcp(8080, SYN, source=source_port), source=DEVICE_ADDRESS))
        bench.wait_for_time_wait(8080, source_port)
        assert bench.packet(packet) == (PASS, {})
        assert bench.revisited(DEVICE_ADDRESS, source_port, DEVICE_ADDRESS, 8080)


def test_packet_that_is_forwarded_passes(bench: Bench) -> None:
    bench.namespace.sysctl("net/ipv4/conf/d0/forwarding", 1)
    try:
        with bench.listener(1):
            packet = ethernet(ipv4(tcp(8080, SYN), destination="10.94.0.9"))
            assert bench.packet(packet) == (PASS, {})
            assert bench.packet(ethernet(ipv4(tcp(8080, SYN)))) == (DROP, ASSIGNED)
    finally:
        bench.namespace.sysctl("net/ipv4/conf/d0/forwarding", 0)
