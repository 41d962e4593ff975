"""hold_egress.c, return_host.c and restore_mark.c by BPF_PROG_TEST_RUN: packets in, verdict and counters out.

The kernel gives these packets a socket without a mark, so that only the packet's own counts here;
tests/netns/test_egress.py shows the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodeseal.capture import constants
from support.bpf import DEVICE_ADDRESS, DEVICE_ADDRESS_6, PEER_ADDRESS, PEER_ADDRESS_6, Bench, ethernet, ipv4, ipv6, tcp
from support.namespaces import needs_root
from support.patience import wait_for

pytestmark = needs_root

PASS = 0xFFFFFFFF  # TC_ACT_UNSPEC
DROP = 2  # TC_ACT_SHOT
SYN, RST, PSH, ACK = 0x02, 0x04, 0x08, 0x10
IPV6 = 0x86DD
PORT = 9100

CAPTURED = {
    "a pod's application": constants.MARK_CAPTURED,
    "the core towards an application": constants.MARK_TO_APP,
    "the core towards a process of the node": constants.MARK_ANSWER,
    "a SYN that is released": constants.MARK_RELEASED,
    "the first process of the node": constants.host_mark(1),
    "the last process of the node": constants.host_mark(255),
}
OTHERS = {
    "none": 0,
    "the core towards other machines": constants.MARK_CORE,
    "kube-proxy's": 0x4000,
    "ours with a bit of kube-proxy's": constants.host_mark(1) | 0x4000,
    "no process of the node": constants.MARK_HOST | 0x100,
}
PACKETS = {
    "ipv4": ethernet(ipv4(tcp(8080, ACK, PORT), source=DEVICE_ADDRESS, destination=PEER_ADDRESS) + b"payload"),
    "ipv6": ethernet(ipv6(tcp(8080, ACK, PORT), source=DEVICE_ADDRESS_6, destination=PEER_ADDRESS_6), kind=IPV6),
    "fragment": ethernet(ipv4(b"payload", fragment=0x0001, source=DEVICE_ADDRESS, destination=PEER_ADDRESS)),
    "udp": ethernet(ipv4(bytes(8), protocol=17, source=DEVICE_ADDRESS, destination=PEER_ADDRESS)),
    "arp": ethernet(bytes(28), kind=0x0806),
}


@pytest.fixture(scope="module", params=["hold_egress", "return_host"])
def guard(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, request.param)


@pytest.mark.parametrize("packet", PACKETS)
@pytest.mark.parametrize("whose", CAPTURED)
def test_what_is_captured_does_not_leave(guard: Bench, whose: str, packet: str) -> None:
    assert guard.packet(PACKETS[packet], mark=CAPTURED[whose]) == (DROP, {"egress_held": 1})


@pytest.mark.parametrize("packet", PACKETS)
@pytest.mark.parametrize("whose", OTHERS)
def test_everything_else_leaves(guard: Bench, whose: str, packet: str) -> None:
    assert guard.packet(PACKETS[packet], mark=OTHERS[whose]) == (PASS, {})


@pytest.mark.parametrize("address", [DEVICE_ADDRESS, DEVICE_ADDRESS_6])
def test_a_reset_of_who_is_established_and_has_received_nothing_does_not_leave(address: str) -> None:
    """It answers what came too early. Later ones may be those of an operator's rule."""
    with ExitStack() as stack:
        bench = Bench(stack, "hold_egress")
        with bench.connection(PORT, address) as (accepted, port):
            reset, data = (sent(address, port, flags) for flags in (RST, PSH | ACK))
            assert bench.packet(reset) == (DROP, {"park_reset_held": 1})
            assert bench.packet(data) == (PASS, {})
            accepted.sendall(b"x")
            wait_for(lambda: bench.packet(reset) == (PASS, {}), "its resets pass")
        wait_for(lambda: bench.packet(reset) == (PASS, {}), "so do those of nobody")


def sent(address: str, port: int, flags: int) -> bytes:
    """A packet of the namespace's socket that has dialled PORT from `port`."""
    if address == DEVICE_ADDRESS:
        return ethernet(ipv4(tcp(PORT, flags, port), source=address, destination=address))
    return ethernet(ipv6(tcp(PORT, flags, port), source=address, destination=address), kind=IPV6)


def test_an_answer_that_nobody_waits_for_leaves() -> None:
    with ExitStack() as stack:
        bench = Bench(stack, "return_host")
        for address in (DEVICE_ADDRESS, DEVICE_ADDRESS_6):
            bench.place(address, PORT)
        for name in ("ipv4", "ipv6"):
            assert bench.packet(PACKETS[name]) == (PASS, {})


def test_on_lo_a_mark_that_no_socket_has_is_left_alone() -> None:
    with ExitStack() as stack:
        bench = Bench(stack, "restore_mark")
        for mark in (0, constants.host_mark(1) | 0x4000, *CAPTURED.values()):
            assert bench.packet(PACKETS["ipv4"], mark=mark) == (PASS, {})
