"""steer_ingress.c by BPF_PROG_TEST_RUN: packets in, verdict and counters out.

bpf_sk_assign answers EOPNOTSUPP outside a real ingress, so a packet that would be given to the listener ends as a drop
that is counted as steer_assign_failed; tests/netns/test_capture_connections.py shows the assignment itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from nodeseal.capture import constants
from nodeseal.capture.bypass import node_entries, peer_entries
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from support.bpf import (
    BOTH_FAMILIES,
    DEVICE_ADDRESS,
    DEVICE_ADDRESS_6,
    PEER_ADDRESS,
    PEER_ADDRESS_6,
    Bench,
    ethernet,
    ipv4,
    ipv6,
    listen,
    tcp,
)
from support.namespaces import needs_root

pytestmark = needs_root

PASS = 0xFFFFFFFF  # TC_ACT_UNSPEC
DROP = 2  # TC_ACT_SHOT
SYN, RST, ACK, FIN = 0x02, 0x04, 0x10, 0x01
MORE_FRAGMENTS = 0x2000

IPV6 = 0x86DD
# Extension headers, without their first byte: see support.bpf.ipv6.
HOP_BY_HOP = (0, b"\0\1\4" + bytes(4))
DESTINATION = (60, b"\1\1\x0c" + bytes(12))
ROUTING_DONE = (43, b"\2\4\0" + bytes(20))
ROUTING_ON = (43, b"\2\4\1" + bytes(20))
UNKNOWN = (253, b"\0" + bytes(6))

ASSIGNED = {"steer_assign_failed": 1}
NONE: dict[str, int] = {}


def fragment(offset: int, *, more: bool) -> tuple[int, bytes]:
    """A fragment header; the offset in bytes."""
    return 44, b"\0" + struct.pack("!HI", offset | more, 77)


def ethernet6(packet: bytes) -> bytes:
    return ethernet(packet, kind=IPV6)


def frame(payload: bytes, address: str, *, source: str = "") -> bytes:
    """What comes for an address, of either family."""
    if ":" in address:
        return ethernet6(ipv6(payload, destination=address, **({"source": source} if source else {})))
    return ethernet(ipv4(payload, destination=address, **({"source": source} if source else {})))


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
    Case("an IPv6 packet that says it is IPv4", ethernet(ipv6(tcp(8080, SYN))), PASS, {"steer_truncated": 1}),
    Case("an IPv4 packet that says it is IPv6", ethernet6(ipv4(tcp(8080, SYN))), PASS, {"steer_truncated": 1}),
]

CASES_6 = [
    Case("SYN", ethernet6(ipv6(tcp(8080, SYN))), DROP, ASSIGNED),
    Case("SYN to the mesh port", ethernet6(ipv6(tcp(15008, SYN))), PASS, NONE),
    Case("ACK of a cookie", ethernet6(ipv6(tcp(8080, ACK))), DROP, ASSIGNED),
    Case("SYN and ACK", ethernet6(ipv6(tcp(8080, SYN | ACK))), PASS, NONE),
    Case("RST", ethernet6(ipv6(tcp(8080, RST))), PASS, NONE),
    Case("SYN behind options", ethernet6(ipv6(tcp(8080, SYN), HOP_BY_HOP)), DROP, ASSIGNED),
    Case("mesh port behind options", ethernet6(ipv6(tcp(15008, SYN), HOP_BY_HOP, DESTINATION)), PASS, NONE),
    Case("ACK behind options", ethernet6(ipv6(tcp(8080, ACK), DESTINATION)), DROP, ASSIGNED),
    Case(
        "SYN behind every extension header in its order",
        ethernet6(ipv6(tcp(8080, SYN), HOP_BY_HOP, DESTINATION, ROUTING_DONE, fragment(0, more=False), DESTINATION)),
        DROP,
        ASSIGNED,
    ),
    Case("SYN behind as many as are looked at", ethernet6(ipv6(tcp(8080, SYN), *[DESTINATION] * 8)), DROP, ASSIGNED),
    Case("SYN behind more", ethernet6(ipv6(tcp(8080, SYN), *[DESTINATION] * 9)), DROP, {"steer_headers": 1}),
    Case(
        "whatever is behind so many", ethernet6(ipv6(b"", *[DESTINATION] * 9, protocol=59)), DROP, {"steer_headers": 1}
    ),
    Case("SYN that goes on to elsewhere", ethernet6(ipv6(tcp(8080, SYN), ROUTING_ON)), DROP, {"steer_headers": 1}),
    Case("ACK that goes on to elsewhere", ethernet6(ipv6(tcp(8080, ACK), ROUTING_ON)), DROP, {"steer_headers": 1}),
    Case("UDP that goes on to elsewhere", ethernet6(ipv6(bytes(8), ROUTING_ON, protocol=17)), PASS, NONE),
    Case(
        "SYN in a first fragment",
        ethernet6(ipv6(tcp(8080, SYN), fragment(0, more=True))),
        DROP,
        {"steer_fragment": 1},
    ),
    Case(
        "SYN behind options in a first fragment",
        ethernet6(ipv6(tcp(8080, SYN), HOP_BY_HOP, fragment(0, more=True), DESTINATION)),
        DROP,
        {"steer_fragment": 1},
    ),
    Case(
        "first fragment too small for the flags",
        ethernet6(ipv6(tcp(8080, SYN)[:8], fragment(0, more=True))),
        DROP,
        {"steer_fragment": 1},
    ),
    Case(
        "first fragment that ends in its options",
        ethernet6(ipv6(b"\6\1", fragment(0, more=True), protocol=60)),
        DROP,
        {"steer_fragment": 1},
    ),
    Case(
        "fragment in a first fragment",
        ethernet6(ipv6(tcp(8080, SYN), fragment(0, more=True), fragment(0, more=False))),
        DROP,
        {"steer_fragment": 1},
    ),
    Case("SYN in a fragment that is all", ethernet6(ipv6(tcp(8080, SYN), fragment(0, more=False))), DROP, ASSIGNED),
    Case("later fragment", ethernet6(ipv6(tcp(8080, SYN), fragment(64, more=True))), PASS, NONE),
    Case("last fragment", ethernet6(ipv6(tcp(8080, SYN), fragment(64, more=False))), PASS, NONE),
    Case("fragment of UDP", ethernet6(ipv6(bytes(8), fragment(0, more=True), protocol=17)), PASS, NONE),
    Case("TCP header cut off", ethernet6(ipv6(tcp(8080, SYN)[:12])), PASS, {"steer_truncated": 1}),
    Case("nothing behind the header", ethernet6(ipv6(b"")), PASS, {"steer_truncated": 1}),
    Case("options cut off", ethernet6(ipv6(b"\6", protocol=60)), PASS, {"steer_truncated": 1}),
    Case(
        "options that reach past the end",
        ethernet6(ipv6(tcp(8080, SYN), (60, b"\xff" + bytes(6)))),
        PASS,
        {"steer_truncated": 1},
    ),
    Case("unknown extension header", ethernet6(ipv6(tcp(8080, SYN), UNKNOWN)), PASS, NONE),
    Case("UDP", ethernet6(ipv6(struct.pack("!HHHH", 5353, 8080, 8, 0), protocol=17)), PASS, NONE),
    Case("UDP behind options", ethernet6(ipv6(bytes(8), HOP_BY_HOP, protocol=17)), PASS, NONE),
    Case("neighbour solicitation", ethernet6(ipv6(b"\x87" + bytes(23), protocol=58)), PASS, NONE),
    Case(
        "listener report behind a router alert",
        ethernet6(ipv6(b"\x8f" + bytes(7), HOP_BY_HOP, protocol=58)),
        PASS,
        NONE,
    ),
    Case("no next header", ethernet6(ipv6(b"", protocol=59)), PASS, NONE),
    Case("SYN from the link", ethernet6(ipv6(tcp(8080, SYN), source="fe80::9")), PASS, NONE),
    Case("SYN to the link", ethernet6(ipv6(tcp(8080, SYN), source="fe80::9", destination="fe80::5")), PASS, NONE),
    Case("SYN to a group", ethernet6(ipv6(tcp(8080, SYN), destination="ff02::1")), PASS, NONE),
]
ADDRESSES = pytest.mark.parametrize("address", [DEVICE_ADDRESS, DEVICE_ADDRESS_6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, "steer_ingress")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.description)
def test_packet(bench: Bench, case: Case) -> None:
    with bench.listener(1):
        assert bench.packet(case.packet) == (case.verdict, case.counters)


@pytest.mark.parametrize("case", CASES_6, ids=lambda case: case.description)
def test_ipv6_packet(bench: Bench, case: Case) -> None:
    with bench.listener(1):
        assert bench.packet(case.packet) == (case.verdict, case.counters)


@pytest.mark.parametrize(
    ("version", "captured", "other"), [(4, DEVICE_ADDRESS, DEVICE_ADDRESS_6), (6, DEVICE_ADDRESS_6, DEVICE_ADDRESS)]
)
def test_a_family_in_which_the_workload_has_no_address_passes(version: int, captured: str, other: str) -> None:
    with ExitStack() as stack:
        bench = Bench(stack, "steer_ingress", settings=constants.FAMILIES[version])
        with bench.listener(1):
            assert bench.packet(frame(tcp(8080, SYN), other)) == (PASS, {})
            assert bench.packet(frame(tcp(8080, SYN), captured)) == (DROP, ASSIGNED)


@pytest.mark.parametrize("flags", [SYN, ACK])
@ADDRESSES
def test_without_a_listener_what_opens_a_connection_is_dropped(bench: Bench, address: str, flags: int) -> None:
    assert bench.packet(frame(tcp(8080, flags), address)) == (DROP, {"steer_no_listener": 1})


@ADDRESSES
def test_without_a_listener_everything_passes_to_one_that_is_open_on_failure(address: str) -> None:
    with ExitStack() as stack:
        bench = Bench(stack, "steer_ingress", settings=BOTH_FAMILIES | constants.SETTING_OPEN)
        assert bench.packet(frame(tcp(8080, SYN), address)) == (PASS, {})
        with bench.listener(1):
            assert bench.packet(frame(tcp(8080, SYN), address)) == (DROP, ASSIGNED)


@ADDRESSES
def test_without_a_listener_the_mesh_port_still_passes(bench: Bench, address: str) -> None:
    assert bench.packet(frame(tcp(15008, SYN), address)) == (PASS, {})


@pytest.mark.parametrize("flags", [SYN, ACK])
@ADDRESSES
def test_port_where_the_application_listens_is_steered(bench: Bench, address: str, flags: int) -> None:
    with bench.listener(1), bench.namespace.run(lambda: listen(address, 8080)):
        assert bench.packet(frame(tcp(8080, flags), address)) == (DROP, ASSIGNED)


@pytest.mark.parametrize("flags", [SYN, ACK, ACK | FIN])
@ADDRESSES
def test_packet_of_an_established_connection_passes(bench: Bench, address: str, flags: int) -> None:
    with bench.listener(1), bench.connection(8080, address) as (_, source_port):
        packet = frame(tcp(8080, flags, source=source_port), address, source=address)
        assert bench.packet(packet) == (PASS, {})


@ADDRESSES
def test_syn_that_meets_time_wait_is_noted_for_the_lookup(bench: Bench, address: str) -> None:
    with bench.listener(1):
        with bench.connection(8080, address) as (accepted, source_port):
            accepted.shutdown(socket.SHUT_WR)  # first to close: TIME_WAIT is on this side
        packet = frame(tcp(8080, SYN, source=source_port), address, source=address)
        bench.wait_for_time_wait(8080, source_port)
        assert bench.packet(packet) == (PASS, {})
        assert bench.revisited(address, source_port, address, 8080)


@pytest.mark.parametrize(
    ("setting", "address", "elsewhere"),
    [
        ("net/ipv4/conf/d0/forwarding", DEVICE_ADDRESS, "10.94.0.9"),
        ("net/ipv6/conf/d0/forwarding", DEVICE_ADDRESS_6, "fd94::9"),
    ],
    ids=["ipv4", "ipv6"],
)
def test_packet_that_is_forwarded_passes(bench: Bench, setting: str, address: str, elsewhere: str) -> None:
    bench.namespace.sysctl(setting, 1)
    try:
        with bench.listener(1):
            assert bench.packet(frame(tcp(8080, SYN), elsewhere)) == (PASS, {})
            assert bench.packet(frame(tcp(8080, SYN), address)) == (DROP, ASSIGNED)
    finally:
        bench.namespace.sysctl(setting, 0)


@pytest.mark.parametrize("headers", [[ROUTING_ON], [DESTINATION] * 9])
def test_ipv6_packet_that_is_forwarded_passes_whatever_its_headers(
    bench: Bench, headers: list[tuple[int, bytes]]
) -> None:
    bench.namespace.sysctl("net/ipv6/conf/d0/forwarding", 1)
    try:
        packet = ethernet6(ipv6(tcp(8080, SYN), *headers, destination="fd94::9"))
        assert bench.packet(packet) == (PASS, {})
    finally:
        bench.namespace.sysctl("net/ipv6/conf/d0/forwarding", 0)


# ---- what passes by the core

OWN, PEER = IPv4Address(DEVICE_ADDRESS), IPv4Address(PEER_ADDRESS)
OWN_6, PEER_6 = IPv6Address(DEVICE_ADDRESS_6), IPv6Address(PEER_ADDRESS_6)
PORT = Exclusions(inbound=Excluded(ports=(PortRange(8000, 8080),)))
RANGE = Exclusions(inbound=Excluded(networks=(IPv4Network("10.93.0.8/30"), IPv6Network("fd93::8/127"))))
DIALS_ALL = Exclusions(outbound=Excluded(networks=(IPv4Network("0.0.0.0/0"),)))
EXCLUDED = {"steer_excluded": 1}


def steered(
    bench: Bench, entries: Mapping[bytes, int], packet: bytes = ethernet(ipv4(tcp(8080, SYN)))
) -> dict[str, int]:
    """The counters that moved, with these entries in the map."""
    bench.bypass(entries)
    try:
        with bench.listener(1):
            verdict, counters = bench.packet(packet)
        assert verdict == (DROP if counters == ASSIGNED else PASS)
        return counters
    finally:
        bench.bypass({})


@pytest.mark.parametrize("flags", [SYN, ACK])
@pytest.mark.parametrize("exclude", [PORT, RANGE], ids=["port", "range"])
def test_what_the_workload_excludes_passes(bench: Bench, exclude: Exclusions, flags: int) -> None:
    entries = peer_entries([OWN, OWN_6], exclude)
    assert steered(bench, entries, ethernet(ipv4(tcp(8080, flags)))) == EXCLUDED
    assert steered(bench, entries, ethernet6(ipv6(tcp(8080, flags)))) == EXCLUDED


@pytest.mark.parametrize(
    ("port", "source"), [(7999, PEER_ADDRESS), (8081, PEER_ADDRESS), (0x901F, PEER_ADDRESS)], ids=str
)
def test_what_the_workload_does_not_exclude_is_steered(bench: Bench, port: int, source: str) -> None:
    packet = ethernet(ipv4(tcp(port, SYN), source=source))
    assert steered(bench, peer_entries([OWN], PORT), packet) == ASSIGNED


def test_what_another_workload_excludes_is_steered(bench: Bench) -> None:
    assert steered(bench, peer_entries([IPv4Address("10.93.0.6")], PORT)) == ASSIGNED


def test_what_one_of_two_enrolled_workloads_excludes_is_steered(bench: Bench) -> None:
    peer = peer_entries([PEER], NO_EXCLUSIONS)
    assert steered(bench, peer_entries([OWN], PORT) | peer) == ASSIGNED
    assert steered(bench, peer_entries([OWN], NO_EXCLUSIONS) | peer_entries([PEER], DIALS_ALL)) == ASSIGNED
    assert steered(bench, peer_entries([OWN], PORT) | peer_entries([PEER], DIALS_ALL)) == EXCLUDED


def test_what_is_excluded_passes_from_an_address_that_processes_share(bench: Bench) -> None:
    assert steered(bench, peer_entries([OWN], PORT) | peer_entries([PEER], NO_EXCLUSIONS, shared=True)) == EXCLUDED


def test_ranges_of_one_family_say_nothing_of_the_other(bench: Bench) -> None:
    everything_6 = Exclusions(inbound=Excluded(networks=(IPv6Network("::/0"),)))
    assert steered(bench, peer_entries([OWN, OWN_6], everything_6)) == ASSIGNED
    assert steered(bench, peer_entries([OWN, OWN_6], everything_6), ethernet6(ipv6(tcp(8080, SYN)))) == EXCLUDED


def test_excluded_connection_needs_no_listener(bench: Bench) -> None:
    bench.bypass(peer_entries([OWN], PORT))
    try:
        assert bench.packet(ethernet(ipv4(tcp(8080, SYN)))) == (PASS, EXCLUDED)
    finally:
        bench.bypass({})


def test_trusted_address_passes_wherever_it_comes_from(bench: Bench) -> None:
    trusted = node_entries([], [IPv4Network("10.93.0.0/24")])
    assert steered(bench, trusted) == {"steer_from_node": 1}
    assert steered(bench, trusted | peer_entries([PEER], NO_EXCLUSIONS)) == ASSIGNED
    assert steered(bench, trusted | peer_entries([PEER], NO_EXCLUSIONS, shared=True)) == ASSIGNED
    assert steered(bench, node_entries([], [IPv4Network("10.94.0.0/24")])) == ASSIGNED


def test_node_address_alone_does_not_pass(bench: Bench) -> None:
    """BPF_PROG_TEST_RUN's packets were sent by no TCP socket; test_capture_bypass.py shows those that were."""
    assert steered(bench, node_entries([PEER, PEER_6], [])) == ASSIGNED
    assert steered(bench, node_entries([PEER, PEER_6], []), ethernet6(ipv6(tcp(8080, SYN)))) == ASSIGNED
