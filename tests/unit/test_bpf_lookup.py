"""assign_lookup.c by BPF_PROG_TEST_RUN: what asks for a socket goes in, verdict, socket and counters come out.

BPF_PROG_TEST_RUN allows no ingress_ifindex but 0, which X is compiled once more, with 0 for the index of lo.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.bpf.compile import compile_in_child
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.bpf.sources import source_directory
from support.bpf import DEVICE_ADDRESS, DEVICE_ADDRESS_6, Bench
from support.namespaces import needs_root

pytestmark = needs_root

DROP, PASS = 0, 1
TCP, UDP = 6, 17
FAR, FAR_6 = "203.0.113.7", "2001:db8::7"
OWN_ON_LO, OWN_ON_LO_6 = "10.99.0.1", "fd99::1"


@dataclass(frozen=True)
class Case:
    description: str
    local: str
    remote: str
    protocol: int = TCP


NOT_CAPTURED = [
    Case("UDP", FAR, DEVICE_ADDRESS, UDP),
    Case("loopback", "127.0.0.1", "127.0.0.1"),
    Case("other loopback address", "127.9.9.9", DEVICE_ADDRESS),
    Case("known address on lo", OWN_ON_LO, DEVICE_ADDRESS),
    Case("address to itself", FAR, FAR),
    Case("UDP over IPv6", FAR_6, DEVICE_ADDRESS_6, UDP),
    Case("IPv6 loopback", "::1", "::1"),
    Case("IPv6 on the link", "fe80::7", DEVICE_ADDRESS_6),
    Case("known IPv6 address on lo", OWN_ON_LO_6, DEVICE_ADDRESS_6),
    Case("IPv6 address to itself", FAR_6, FAR_6),
]
FAMILIES = pytest.mark.parametrize(
    ("far", "near"), [(FAR, DEVICE_ADDRESS), (FAR_6, DEVICE_ADDRESS_6)], ids=["ipv4", "ipv6"]
)


@pytest.fixture(scope="module")
def outside() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, "assign_lookup")


@pytest.fixture(scope="module")
def loopback_is_0(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    sources = tmp_path_factory.mktemp("sources") / "bpf"
    shutil.copytree(source_directory(), sources)
    header = sources / "nodeseal.h"
    text = header.read_text()
    assert "#define NS_LOOPBACK_IFINDEX 1 " in text
    header.write_text(text.replace("#define NS_LOOPBACK_IFINDEX 1 ", "#define NS_LOOPBACK_IFINDEX 0 "))
    return Programs(compile_in_child(Path(sources)))


@pytest.fixture(scope="module")
def by_lo(loopback_is_0: Programs) -> Iterator[Bench]:
    with ExitStack() as stack:
        bench = Bench(stack, "assign_lookup", loopback_is_0)
        bench.own(OWN_ON_LO)
        bench.own(OWN_ON_LO_6)
        yield bench


@FAMILIES
def test_captured_goes_to_the_outbound_listener(by_lo: Bench, far: str, near: str) -> None:
    with by_lo.listener(0) as outbound, by_lo.listener(1):
        assert by_lo.lookup(far, near) == (PASS, outbound, {})


@FAMILIES
def test_captured_is_dropped_without_a_listener(by_lo: Bench, far: str, near: str) -> None:
    with by_lo.listener(1):
        assert by_lo.lookup(far, near) == (DROP, 0, {"lookup_no_listener": 1})


@pytest.mark.parametrize("case", NOT_CAPTURED, ids=lambda case: case.description)
def test_not_captured(by_lo: Bench, case: Case) -> None:
    with by_lo.listener(0):
        assert by_lo.lookup(case.local, case.remote, case.protocol) == (PASS, 0, {})


@pytest.mark.parametrize("case", NOT_CAPTURED, ids=lambda case: case.description)
def test_not_captured_passes_without_a_listener(by_lo: Bench, case: Case) -> None:
    assert by_lo.lookup(case.local, case.remote, case.protocol) == (PASS, 0, {})


@FAMILIES
def test_from_outside_passes(outside: Bench, far: str, near: str) -> None:
    with outside.listener(0), outside.listener(1):
        assert outside.lookup(near, far) == (PASS, 0, {})


@FAMILIES
def test_noted_syn_goes_to_the_inbound_listener_once(outside: Bench, far: str, near: str) -> None:
    with outside.listener(0), outside.listener(1) as inbound:
        outside.note(far, 40000, near, 8080)
        assert outside.lookup(near, far, TCP, 8080, 40000) == (PASS, inbound, {})
        assert outside.lookup(near, far, TCP, 8080, 40000) == (PASS, 0, {})


@FAMILIES
@pytest.mark.parametrize(("local_port", "remote_port"), [(8081, 40000), (8080, 40001)])
def test_note_of_another_connection_does_not_count(
    outside: Bench, far: str, near: str, local_port: int, remote_port: int
) -> None:
    with outside.listener(1):
        outside.note(far, 40000, near, 8080)
        assert outside.lookup(near, far, TCP, local_port, remote_port) == (PASS, 0, {})


@FAMILIES
def test_noted_syn_is_dropped_without_a_listener(outside: Bench, far: str, near: str) -> None:
    outside.note(far, 40000, near, 8080)
    assert outside.lookup(near, far, TCP, 8080, 40000) == (DROP, 0, {"lookup_no_listener": 1})


@FAMILIES
def test_note_that_is_old_does_not_count(outside: Bench, far: str, near: str) -> None:
    with outside.listener(1):
        outside.note(far, 40000, near, 8080, age_ns=2_000_000_000)
        assert outside.lookup(near, far, TCP, 8080, 40000) == (PASS, 0, {})


@FAMILIES
def test_a_family_in_which_the_workload_has_no_address_passes(loopback_is_0: Programs, far: str, near: str) -> None:
    version = 6 if ":" in far else 4
    with ExitStack() as stack:
        bench = Bench(stack, "assign_lookup", loopback_is_0, settings=constants.FAMILIES[10 - version])
        assert bench.lookup(far, near) == (PASS, 0, {})
        bench.note(far, 40000, near, 80)
        assert bench.lookup(near, far) == (PASS, 0, {})
