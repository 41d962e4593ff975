"""What a node tells without being asked: the local API's stream of events, read with curl."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.connection import echoes
from support.lab import RunningLab
from support.programs import Programs


class Listener:
    """curl on the events of a node."""

    def __init__(self, lab: RunningLab, node: str, query: str) -> None:
        socket = lab.run_dir(node) / "agent.sock"
        command = ["curl", "-sSN", "--unix-socket", str(socket), f"http://node/v1/events{query}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def next(self, event: str) -> dict[str, Any]:
        """The next of this kind."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            row: dict[str, Any] = json.loads(line)
            if row["event"] == event:
                return row
        raise EOFError("the stream ended")

    def close(self) -> None:
        """The listener goes."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def listener(lab: RunningLab) -> Iterator[Listener]:
    """To what happens to pipeline on its node."""
    made = Listener(lab, lab.node_of("pipeline"), "?workload=default/pipeline")
    try:
        yield made
    finally:
        made.close()


def test_connections_are_told_as_they_open_and_end(lab: RunningLab, programs: Programs, listener: Listener) -> None:
    server = programs.serve("pipeline")
    stop = threading.Event()

    def dial_on() -> None:
        """The stream begins a moment after curl has connected."""
        while not stop.wait(0.01):
            client = programs.dial("shipper", server.address)
            assert echoes(client, b"x" * 1000)
            client.close()

    programs.thread(dial_on)
    programs.at_end(stop.set)
    opened = listener.next("opened")
    assert opened["workload"] == "default/pipeline"
    row = opened["connection"]
    assert (row["direction"], row["mtls"], row["peer"]) == ("inbound", True, lab.identity("shipper"))
    closed = listener.next("closed")
    while closed["connection"]["id"] != row["id"]:
        closed = listener.next("closed")
    assert closed["connection"]["bytes_sent"] == 1000
    assert closed["time"] >= opened["time"]


@pytest.mark.ebpf_only("with iptables plaintext goes through the core")
def test_native_connections_are_told_too(lab: RunningLab, programs: Programs, listener: Listener) -> None:
    server = programs.serve("pipeline")
    stop = threading.Event()

    def dial_on() -> None:
        """As above."""
        while not stop.wait(0.01):
            client = programs.dial("intruder", server.address)
            assert echoes(client, b"x" * 1000)
            client.close()

    programs.thread(dial_on)
    programs.at_end(stop.set)
    opened = listener.next("opened")
    row = opened["connection"]
    assert (row["direction"], row["native"], row["reason"]) == ("inbound", True, "source-not-enrolled")
    closed = listener.next("closed")
    while closed["connection"]["id"] != row["id"]:
        closed = listener.next("closed")
    assert (closed["connection"]["state"], closed["connection"]["bytes_sent"]) == ("closed", 1000)
    assert closed["time"] >= opened["time"]
