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

from nodeseal.capture.compile import compile_in_child, source_directory
from nodeseal.capture.programs import Programs
from support.bpf import DEVICE_ADDRESS, Bench
from support.namespaces import needs_root

pytestmark = needs_root

DROP, PASS = 0, 1
TCP, UDP = 6, 17
FAR = "203.0.113.7"
OWN_ON_LO = "10.99.0.1"


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
]


@pytest.fixture(scope="module")
def outside() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, "assign_lookup")


@pytest.fixture(scope="module")
def by_lo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    sources = tmp_path_factory.mktemp("sources") / "bpf"
    shutil.copytree(source_directory(), sources)
    header = sources / "nodeseal.h"
    text = header.read_text()
    assert "#define NS_LOOPBACK_IFINDEX 1 " in text
    header.write_text(text.replace("#define NS_LOOPBACK_IFINDEX 1 ", "#define NS_LOOPBACK_IFINDEX 0 "))
    with ExitStack() as stack:
        bench = Bench(stack, "assign_lookup", Programs(compile_in_child(Path(sources))))
        bench.own(OWN_ON_LO)
        yield bench


def test_captured_goes_to_the_outbound_listener(by_lo: Bench) -> None:
    with by_lo.listener(0) as outbound, by_lo.listener(1):
        assert by_lo.lookup(FAR, DEVICE_ADDRESS) == (PASS, outbound, {})


def test_captured_is_dropped_without_a_listener(by_lo: Bench) -> None:
    with by_lo.listener(1):
        assert by_lo.lookup(FAR, DEVICE_ADDRESS) == (DROP, 0, {"lookup_no_listener": 1})


@pytest.mark.parametrize("case", NOT_CAPTURED, ids=lambda case: case.description)
def test_not_captured(by_lo: Bench, case: Case) -> None:
    with by_lo.listener(0):
        assert by_lo.lookup(case.local, case.remote, case.protocol) == (PASS, 0, {})


@pytest.mark.parametrize("case", NOT_CAPTURED, ids=lambda case: case.description)
def test_not_captured_passes_without_a_listener(by_lo: Bench, case: Case) -> None:
    assert by_lo.lookup(case.local, case.remote, case.protocol) == (PASS, 0, {})


def test_from_outside_passes(outside: Bench) -> None:
    with outside.listener(0), outside.listener(1):
        assert outside.lookup(DEVICE_ADDRESS, FAR) == (PASS, 0, {})


def test_noted_syn_goes_to_the_inbound_listener_once(outside: Bench) -> None:
    with outside.listener(0), outside.listener(1) as inbound:
        outside.note(FAR, 40000, DEVICE_ADDRESS, 8080)
        assert outside.lookup(DEVICE_ADDRESS, FAR, TCP, 8080, 40000) == (PASS, inbound, {})
        assert outside.lookup(DEVICE_ADDRESS, FAR, TCP, 8080, 40000) == (PASS, 0, {})


@pytest.mark.parametrize(("local_port", "remote_port"), [(8081, 40000), (8080, 40001)])
def test_note_of_another_connection_does_not_count(outside: Bench, local_port: int, remote_port: int) -> None:
    with outside.listener(1):
        outside.note(FAR, 40000, DEVICE_ADDRESS, 8080)
        assert outside.lookup(DEVICE_ADDRESS, FAR, TCP, local_port, remote_port) == (PASS, 0, {})


def test_noted_syn_is_dropped_without_a_listener(outside: Bench) -> None:
    outside.note(FAR, 40000, DEVICE_ADDRESS, 8080)
    assert outside.lookup(DEVICE_ADDRESS, FAR, TCP, 8080, 40000) == (DROP, 0, {"lookup_no_listener": 1})


def test_note_that_is_old_does_not_count(outside: Bench) -> None:
    with outside.listener(1):
        outside.note(FAR, 40000, DEVICE_ADDRESS, 8080, age_ns=2_000_000_000)
        assert outside.lookup(DEVICE_ADDRESS, FAR, TCP, 8080, 40000) == (PASS, 0, {})
