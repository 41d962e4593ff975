"""The parts of a chaos run on a real kernel: the bad link, the watch, and what is left when a run is stopped.

The run itself is `make chaos`: it takes minutes. What it does one by one is in test_long_lived.py and test_leaks.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.impairment import Impairment
from chaos.network import BadLink, Watch
from nodeseal_lab.lab import LAB_ROOT
from nodeseal_lab.namespaces import list_namespaces
from nodeseal_lab.plan import prefix
from nodeseal_lab.processes import child_environment
from support.connection import echoes
from support.lab import RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.pod_traffic import new_marker
from support.programs import Programs

TESTS = Path(__file__).resolve().parents[1]
SECRET, OPEN = new_marker(), new_marker()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A network without agents: all is plaintext."""
    with running_lab(tmp_path_factory.mktemp("chaos"), with_agents=False) as lab:
        yield lab


@pytest.fixture(scope="module")
def shared_link(lab: RunningLab) -> Iterator[BadLink]:
    """It stays for the lab's life."""
    link = BadLink(lab.lab, 1)
    yield link
    link.close()


@pytest.fixture
def link(shared_link: BadLink) -> Iterator[BadLink]:
    """Clean before and after each test."""
    yield shared_link
    shared_link.set(Impairment())


@pytest.fixture
def watch(lab: RunningLab) -> Iterator[Watch]:
    watch = Watch(lab.lab, SECRET, OPEN)
    yield watch
    watch.close()


def test_clean_link_carries_bulk(lab: RunningLab, programs: Programs, link: BadLink) -> None:
    before = link.stats()["frames"]
    client = programs.dial("shipper", programs.serve("pipeline").address)
    data = bytes(range(256)) * 4000
    sending = programs.thread(lambda: client.sendall(data))
    received = bytearray()
    while len(received) < len(data):
        received += client.recv(1 << 16)
    sending.result()
    assert bytes(received) == data
    # Twice a megabyte in frames of 1,514 bytes at most: no large segment passes as one.
    assert link.stats()["frames"] - before > 2 * len(data) // 1514


def test_bad_link_loses_nothing_of_a_connection(lab: RunningLab, programs: Programs, link: BadLink) -> None:
    link.set(Impairment(loss=0.05, delay_ms=2, jitter_ms=2, reorder=0.05, duplicate=0.05))
    before = link.stats()["lost"]
    client = programs.dial("shipper", programs.serve("pipeline").address)
    while link.stats()["lost"] < before + 20:
        assert echoes(client, bytes(range(256)) * 40)


def test_link_that_loses_everything_carries_nothing(lab: RunningLab, programs: Programs, link: BadLink) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client)
    link.set(Impairment(loss=1.0))
    lost = link.stats()["lost"]
    client.sendall(b"into the void")
    wait_for(lambda: link.stats()["lost"] > lost + 1, "the segment is sent, and sent again")
    link.set(Impairment())
    assert client.recv(100) == b"into the void"


def test_pulled_cable_takes_the_carrier(lab: RunningLab, programs: Programs, link: BadLink) -> None:
    client = programs.dial("shipper", programs.serve("pipeline").address)
    link.pull("node2")
    try:
        wait_for(lambda: not carrier(lab), "the uplink of node2 has no carrier")
        client.sendall(b"waits")
    finally:
        link.plug("node2")
    wait_for(lambda: carrier(lab), "the uplink of node2 has a carrier again")
    assert client.recv(100) == b"waits"


def carrier(lab: RunningLab) -> bool:
    """Of node2's uplink."""
    netns = lab.lab.plan.node("node2").netns
    command = ["ip", "-n", netns, "-brief", "link", "show", "dev", "eth0"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return "NO-CARRIER" not in shown.stdout


def test_watch_sees_the_secret_and_where(lab: RunningLab, programs: Programs, link: BadLink, watch: Watch) -> None:
    client = programs.dial("shipper", programs.serve("pipeline").address)
    assert echoes(client, b"..." + OPEN)
    wait_for(lambda: watch.stats()["open"] >= 4, "both uplinks see it both ways")
    assert watch.sightings() == []
    assert echoes(client, b"..." + SECRET)
    # On the uplink of each node, there and back.
    sightings = wait_for(lambda: len(watch.sightings()) >= 4 and watch.sightings(), "the watch sees the secret")
    assert {sighting["node"] for sighting in sightings} == {node.netns for node in lab.lab.plan.nodes}
    assert any(f"{lab.address('shipper')}:{client.getsockname()[1]} -> " in one["frame"] for one in sightings)


def test_run_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    name = f"chaos{os.getpid()}"
    argv = [
        "--name",
        name,
        "--log",
        str(tmp_path / "events.log"),
        "--connections",
        "20",
        "--minutes",
        "5",
        "--seed",
        "1",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "chaos", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment() | {"PYTHONPATH": str(TESTS)},
    ) as run:
        try:
            link = LAB_ROOT / name / "link.sock"
            wait_for(lambda: run.poll() is not None or link.exists(), "the run is well under way")
            run.send_signal(signal.SIGINT)
            output, errors = run.communicate(timeout=PATIENCE)
        finally:
            run.kill()
    assert run.returncode == 130, errors
    assert "not made to its end" in output
    assert list_namespaces(prefix(name)) == []
