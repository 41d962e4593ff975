"""An un-enrolled pod that reaches port 15008: neither what it leaves half open nor what it begins costs a workload."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import threading
from collections.abc import Iterator

import psutil
import pytest
from bench.hello import client_hello, group

from support.connection import echoes, endpoint
from support.lab import HBONE_PORT, RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs


def room_of(descriptors: int) -> int:
    """How many that were not published a core of one worker holds, at most (cext/src/loop/strangers.h): of the eighth
    of its descriptors that is for those who have proven nothing, a third."""
    return min(descriptors // 8 // 3, 256)


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """One of its own for each test, so that the first connection between two pods makes a tunnel. One worker: all
    workloads of a node share it."""
    with running_lab(tmp_path_factory.mktemp("strangers"), settings={"workers": 1}) as lab:
        yield lab


def knock(lab: RunningLab, pod: str) -> socket.socket:
    """A connection of `intruder` to the pod's port 15008."""
    address = (lab.address(pod), HBONE_PORT)

    def connect() -> socket.socket:
        return socket.create_connection(address, timeout=10)

    return lab.run("intruder", connect)


def refused(lab: RunningLab, pod: str, limit: str) -> int:
    """How many connections of the pod this limit has ended."""
    count: int = lab.workload(pod)["limits"][limit]["refused"]
    return count


def told(lab: RunningLab) -> dict[str, int]:
    """What node2's core says of peers that have not proven who they are."""
    handshakes: dict[str, int] = lab.status("node2")["core"].get("handshakes", {"slowed": 0})
    return handshakes


def outbound_ones_work(programs: Programs, count: int = 20) -> bool:
    """Whether the victim's own connections all come about; each is closed again."""
    server = programs.serve("shipper")
    for _ in range(count):
        with programs.dial("pipeline", server.address) as client:
            if not echoes(client):
                return False
    return True


@contextlib.contextmanager
def few_descriptors(lab: RunningLab, node: str, more: int) -> Iterator[int]:
    """The node's core may open so many more for a while (prlimit(2)); yields how many in all."""
    pid = lab.core_pid(node)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = psutil.Process(pid).num_fds() + more
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        wait_for(lambda: lab.status(node)["core"]["descriptors"]["limit"] == most, "the core knows its limit")
        yield most
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_connections_that_say_nothing_are_taken_from_no_workload(lab: RunningLab, programs: Programs) -> None:
    flood = 600
    server = programs.serve("pipeline")
    with contextlib.ExitStack() as stack, few_descriptors(lab, "node2", 700) as descriptors:
        left = room_of(descriptors)
        gone = flood - left
        silent = []
        for _ in range(flood):
            with contextlib.suppress(ConnectionResetError):
                silent.append(stack.enter_context(knock(lab, "pipeline")))
        assert outbound_ones_work(programs)
        # A new tunnel, from a workload that its node has published.
        assert echoes(programs.dial("siem", server.address))
        assert refused(lab, "pipeline", "descriptors") == 0
        assert lab.workload("pipeline")["tunnels"] <= 2
        wait_for(lambda: refused(lab, "pipeline", "handshakes") == gone, "the oldest have gone")
        handshakes = told(lab)
        assert (handshakes["unproven"], handshakes["ended"]) == (left, gone)
        # Everybody is told, and by whom it was.
        (row,) = lab.refused("node2", workload="default/pipeline", reason="limit-handshakes")
        assert (row["kind"], row["count"], row["source"]) == ("handshake", gone, lab.address("intruder"))
        assert row["destination"] == endpoint((lab.address("pipeline"), HBONE_PORT))
        text = lab.command("status", "--run-dir", str(lab.run_dir("node2"))).stdout
        assert f"default/pipeline: limit reached: handshakes, {gone} refused since" in text
        log = lab.run_dir("node2") / "core.log"
        line = "workload default/pipeline: limit reached: handshakes, "
        wait_for(lambda: line in log.read_text(), "the core's log tells it")
        # The youngest are those that are left.
        ended = [select.select([one], [], [], 0)[0] != [] for one in silent]
        assert ended == [True] * gone + [False] * left


class Replay:
    """`intruder` sends one recorded hello again and again, on so many connections at a time, until the end."""

    def __init__(self, lab: RunningLab, pod: str, hello: bytes, connections: int) -> None:
        self._lab = lab
        self._pod = pod
        self._hello = hello
        self._end = threading.Event()
        self.sent = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(connections)]

    def _run(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(OSError), knock(self._lab, self._pod) as one:
                one.settimeout(5)
                one.sendall(self._hello)
                self.sent += 1
                one.recv(1)

    def __enter__(self) -> Replay:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("name", ["P-384", "ffdhe8192"])
def test_a_recorded_hello_keeps_nobody_else_from_a_tunnel(lab: RunningLab, programs: Programs, name: str) -> None:
    connections = 150
    server = programs.serve("pipeline")
    with Replay(lab, "pipeline", client_hello(group(name)), connections) as replay:
        wait_for(lambda: replay.sent >= 4 * connections or told(lab)["slowed"] > 0, "the flood is under way")
        assert echoes(programs.dial("siem", server.address))
        assert outbound_ones_work(programs)
        assert echoes(programs.dial("shipper", server.address))
    assert lab.workload("pipeline")["failed"] == 0


def test_who_begins_dear_handshakes_again_and_again_is_slowed_and_it_is_told(
    lab: RunningLab, programs: Programs
) -> None:
    with Replay(lab, "pipeline", client_hello(group("P-384")), 20):
        wait_for(lambda: told(lab)["slowed"] > 0, "the source owes so much that it has to wait")
        assert outbound_ones_work(programs)
