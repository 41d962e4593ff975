"""Long-lived connections across everything that must not cut them: none is cut, no byte is lost or repeated.

Every connection carries numbered, checksummed messages both ways all the time (support/messages.py). The connections
are opened once and stay for all tests of this file. `make chaos` does the same with 1,000 of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from support.authority import renew_intermediate
from support.lab import RunningLab, running_lab
from support.long_lived import LongLived
from support.patience import wait_for

CONNECTIONS = 250
PAIRS = (("shipper", "pipeline"), ("pipeline", "siem"), ("shipper", "siem"), ("guest", "pipeline"))
NODES = ("node1", "node2")
ENROLLED = ("shipper", "siem", "pipeline")
ENDINGS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """Certificates are renewed about every four seconds. `guest` is not enrolled: its connections are plaintext. Half
    of the connections are of IPv6."""
    pods = ("guest:node1:plain",)
    settings = {"certificate_lifetime": "8s"}
    with running_lab(tmp_path_factory.mktemp("long"), more_pods=pods, settings=settings, ipv6=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def connections(lab: RunningLab) -> Iterator[LongLived]:
    """All of them, open, with messages under way."""
    with LongLived(lab.lab, PAIRS, CONNECTIONS) as connections:
        connections.wait_open()
        yield connections


@pytest.fixture(autouse=True)
def nothing_is_cut(lab: RunningLab, connections: LongLived) -> Iterator[None]:
    """After what a test did, every connection carries messages both ways, as before."""
    yield
    done = time.monotonic()
    lab.start_agents()
    wait_for(lambda: lab.enrolled(*ENROLLED), "everything is enrolled")
    connections.wait_heard_since(done)
    assert connections.incidents() == []
    assert connections.open() == CONNECTIONS


@ENDINGS
def test_agents_end_and_start_again(lab: RunningLab, connections: LongLived, number: int) -> None:
    for node in NODES:
        lab.kill_agent(node, number)
    connections.wait_heard_since(time.monotonic())


def test_cores_are_replaced_twice_in_a_row(lab: RunningLab, connections: LongLived) -> None:
    for node in NODES:
        before = lab.core_pids(node)
        for _ in range(2):
            done = lab.command("upgrade-core", "--run-dir", str(lab.run_dir(node)))
            assert (done.returncode, done.stderr) == (0, "")
        # The one that was there first carries all connections; the one in between has none, and may be gone.
        assert set(before) < set(lab.core_pids(node))
        assert lab.core_pid(node) not in before


def test_workload_is_unenrolled_and_enrolled(lab: RunningLab, connections: LongLived) -> None:
    lab.lab.unenrol("pipeline")
    connections.wait_heard_since(time.monotonic())
    lab.lab.enrol("pipeline")


def test_certificates_are_renewed(lab: RunningLab, connections: LongLived) -> None:
    for _ in range(2):
        old = {pod: serial(lab, pod) for pod in ENROLLED}
        wait_for(lambda old=old: all(serial(lab, pod) != old[pod] for pod in ENROLLED), "every pod has a new one")


def test_intermediate_is_replaced(lab: RunningLab, connections: LongLived) -> None:
    renew_intermediate(lab.directory / "ca")
    old = {pod: serial(lab, pod) for pod in ENROLLED}
    wait_for(lambda: all(serial(lab, pod) != old[pod] for pod in ENROLLED), "every pod has one of the new issuer")
    assert all("was read anew" in (lab.run_dir(node) / "agent.log").read_text() for node in NODES)


def test_mode_is_changed(lab: RunningLab, connections: LongLived) -> None:
    # siem is talked to by enrolled pods alone: strict refuses none of them.
    lab.lab.set_mode("siem", "strict")
    connections.wait_heard_since(time.monotonic())
    lab.lab.set_mode("siem", "permissive")


def test_every_connection_ends_whole(connections: LongLived, capsys: pytest.CaptureFixture[str]) -> None:
    """Last in this file: a few connections more, which end; what was sent has arrived, to the last message."""
    with LongLived(connections.lab, PAIRS, CONNECTIONS // 5) as more:
        more.wait_open()
        total = more.finish()
    assert total.incidents == 0
    assert total.closed == CONNECTIONS // 5
    assert total.sent == total.received > 0
    with capsys.disabled():
        print(f"\n{connections.so_far()}")


def serial(lab: RunningLab, pod: str) -> str:
    """Of the certificate that the pod's agent says it has; "" while no agent answers."""
    certificate = lab.workload(pod)["certificate"]
    return str(certificate["serial"]) if certificate else ""
