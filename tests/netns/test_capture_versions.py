"""An agent with other BPF programs takes over what an older one attached, without a gap."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeseal.capture.bpf import cache, runtime
from nodeseal.capture.bpf.compile import Compiled
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.journal import Journal
from nodeseal.capture.node import NodeCapture
from nodeseal.capture.workload import Captured
from nodeseal.linux import bpf
from support.connection import echoes
from support.pods import Pods, compiled

pytestmark = pytest.mark.ebpf_only("versions of its programs")

GROWN = ("enrolled", "counters", "own", "revisited")


def next_version() -> Compiled:
    """Programs whose maps have other shapes: nothing that is pinned fits, but `listeners`."""
    old = compiled()
    maps = {
        name: replace(shape, max_entries=shape.max_entries * 2) if name in GROWN else shape
        for name, shape in old.maps.items()
    }
    return Compiled(old.programs, maps)


@pytest.fixture(params=["links", "filters"])
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, tcx=request.param == "links") as pods:
        yield pods


def links(pods: Pods) -> dict[str, tuple[int, int]]:
    """Pin of each link -> the kernel's numbers of the link and of its program."""
    found = {}
    directory = pods.run_dir() / "bpf"
    for path in sorted(directory.rglob("*")):
        if path.name in ("connect4", "connect6", "lookup") or path.name.startswith("steer-"):
            fd = bpf.pinned(path)
            found[str(path.relative_to(directory))] = struct.unpack_from("=III", bpf._object_info(fd, 64))[1:]
            os.close(fd)
    return found


def replaced(pods: Pods, monkeypatch: pytest.MonkeyPatch, listeners: dict[str, dict[int, int]]) -> list[Captured]:
    """What an agent of the next version adopts; `listeners`: those that the core holds, by workload."""
    monkeypatch.setattr(runtime, "compile_in_child", next_version)
    cache.remove(pods.run_dir())  # as its sources are others
    capture = NodeCapture(pods.run_dir(), choice=pods.backend)
    capture.prepare()
    pods.at_end(capture.close)
    adopted = capture.adopt()
    for captured in adopted:
        capture.take_listeners(captured, listeners[captured.target.name])
    return adopted


def test_programs_are_exchanged_in_their_links(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = pods.capture()
    held = {target.name: capture.enrol(target).listeners for target in (pods.client_target, pods.server_target)}
    before = links(pods)
    replaced(pods, monkeypatch, held)
    after = links(pods)
    assert {pin: link for pin, (link, _program) in after.items()} == {pin: link for pin, (link, _) in before.items()}
    assert all(after[pin][1] != before[pin][1] for pin in before)
    new = Programs(next_version())
    for path in (*(pods.run_dir() / "bpf").glob("ns-*/*"), *(pods.run_dir() / "bpf").glob("*")):
        if path.name in GROWN:
            fd = bpf.pinned(path)
            assert new.fits(path.name, fd), path
            os.close(fd)
    assert not list((pods.run_dir() / "bpf").rglob("*-new"))
    journal = Journal.load(pods.run_dir())
    assert {journal.programs, *(entry.programs for entry in journal.entries.values())} == {new.version}


def test_no_connection_escapes_capture_meanwhile(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    echo = pods.echo(pods.server)
    capture = pods.capture()
    captured = {target.name: capture.enrol(target) for target in (pods.client_target, pods.server_target)}
    relays = [pods.relay(one) for one in captured.values()]
    old = pods.dial(pods.client, ("10.91.2.2", 8080))
    assert echoes(old)
    stop, count = threading.Event(), [1]

    def dial_on() -> None:
        while not stop.is_set():
            assert echoes(pods.dial(pods.client, ("10.91.2.2", 8080)), b"%08d" % count[0])
            count[0] += 1

    dialler = threading.Thread(target=dial_on)
    dialler.start()
    try:
        replaced(pods, monkeypatch, {name: one.listeners for name, one in captured.items()})
    finally:
        stop.set()
        dialler.join()
    assert echoes(old)
    assert echoes(pods.dial(pods.client, ("10.91.2.2", 8080)))
    # Out through the client's core, in through the server's, each of them.
    assert [len(relay.flows) for relay in relays] == [count[0] + 1] * 2
    assert len(echo.peers) == count[0] + 1


def test_leaving_workload_goes_on_leaving(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    pods.echo(pods.server)
    before = pods.client.state()
    capture = pods.capture()
    captured = capture.enrol(pods.client_target)
    relay = pods.relay(captured)
    old = pods.dial(pods.client, ("10.91.2.2", 8080))
    assert echoes(old)
    capture.stop_new(pods.client_target)
    (adopted,) = replaced(pods, monkeypatch, {"default/client": captured.listeners})
    assert adopted.phase == "leaving"
    assert echoes(old)
    assert echoes(pods.dial(pods.client, ("10.91.2.2", 8080)))
    assert len(relay.flows) == 1
    assert not pods.steered(pods.client)
    old.close()
    pods.cleanup()
    assert pods.client.state() == before


def test_cleanup_after_the_exchange_leaves_nothing(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [pods.client.state(), pods.server.state()]
    capture = pods.capture()
    held = {target.name: capture.enrol(target).listeners for target in (pods.client_target, pods.server_target)}
    replaced(pods, monkeypatch, held)
    pods.cleanup()
    assert [pods.client.state(), pods.server.state()] == before
    assert list(pods.run_dir().iterdir()) == []
