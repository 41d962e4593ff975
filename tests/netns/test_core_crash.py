"""Cores that are killed, once and over and over: who is cut, who waits, and that nothing leaves in plaintext."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from support.connection import echoes, receive_exactly
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import BOTH_FAMILIES, Lines, Programs

pytestmark = pytest.mark.fast

CARD = b"card=4111 1111 1111 1111;"
NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab whose cores are killed."""
    with running_lab(tmp_path_factory.mktemp("crash"), more_pods=("comer:node1:plain",), ipv6=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def everything_is_back(lab: RunningLab) -> Iterator[None]:
    yield
    wait_for(lambda: lab.enrolled("shipper", "siem", "pipeline"), "everything is enrolled")


class Download:
    """Of which half has arrived."""

    _HALF = b"the first half"

    def __init__(self, programs: Programs, client: str, server: str) -> None:
        self._server_saw: list[bytes | None] = []
        self._client = programs.dial(client, programs.serve(server, self._send_half).address)
        assert receive_exactly(self._client, len(self._HALF)) == self._HALF

    def is_reset_at_both_ends(self) -> bool:
        """A FIN would be how a download ends that is all there."""
        with pytest.raises(ConnectionResetError):
            self._client.recv(1)
        wait_for(lambda: self._server_saw, "the server sees an end")
        return self._server_saw == [None]

    def _send_half(self, connection: socket.socket) -> None:
        connection.sendall(self._HALF)
        try:
            self._server_saw.append(connection.recv(1))
        except ConnectionResetError:
            self._server_saw.append(None)


@BOTH_FAMILIES
def test_only_connections_of_the_core_that_died_are_lost(lab: RunningLab, programs: Programs) -> None:
    """One that is older than its enrolment goes past every core, and so does one that is native."""
    direct = Lines(programs, "comer", programs.serve("intruder").address)
    lab.lab.enrol("comer")
    tunnelled = programs.dial("comer", programs.serve("pipeline").address)
    elsewhere = Lines(programs, "pipeline", programs.serve("intruder").address)
    native = Lines(programs, "comer", programs.serve("intruder").address)
    assert echoes(tunnelled)
    downloads = [
        Download(programs, client, server) for client, server in (("comer", "pipeline"), ("pipeline", "comer"))
    ]
    lab.kill_core("node1")
    with pytest.raises(ConnectionResetError):
        assert echoes(tunnelled)
    assert all(download.is_reset_at_both_ends() for download in downloads)
    for lines in (direct, elsewhere, native):
        lines.goes_on()
        lines.finish()
    lab.lab.unenrol("comer")


@BOTH_FAMILIES
def test_many_that_dial_while_no_core_runs_are_all_served(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    lab.kill_core("node1")
    lab.kill_core("node2")
    clients = [programs.dial("shipper", server.address) for _ in range(50)]
    assert all(echoes(client, b"%04d" % number) for number, client in enumerate(clients))


def test_crash_loop_never_opens_the_way_for_plaintext(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    stop = threading.Event()
    outcomes = {"served": 0, "cut": 0}

    def dial_on() -> None:
        while not stop.is_set():
            try:
                client = programs.dial("shipper", server.address, timeout=2)
                outcomes["served" if echoes(client, CARD) else "cut"] += 1
                client.close()
            except (OSError, EOFError):
                outcomes["cut"] += 1

    with programs.sniff() as wire:
        dialler = programs.thread(dial_on)
        programs.at_end(stop.set)
        for number in range(6):
            node = NODES[number % 2]
            old = lab.core_pid(node)
            lab.kill_core(node)
            wait_for(lambda node=node, old=old: lab.status(node)["core"]["pid"] not in (None, old), "the next core")
        served = outcomes["served"]
        wait_for(lambda: outcomes["served"] > served + 5, "connections work again")
        stop.set()
        dialler.result()
        assert not wire.carries(CARD)
    assert lab.status("node1")["core"]["crashes"] >= 3


@BOTH_FAMILIES
def test_nobody_gets_past_a_workload_whose_agent_and_core_are_gone(lab: RunningLab, programs: Programs) -> None:
    """Neither out of it nor into it, until they are back."""
    server, other = programs.serve("shipper"), programs.serve("intruder")
    lab.kill_agent("node1")
    lab.kill_core("node1")
    with programs.sniff() as wire:
        for pod, address in (("shipper", other.address), ("intruder", server.address), ("pipeline", server.address)):
            with pytest.raises((TimeoutError, ConnectionError, socket.timeout)):
                echoes(programs.dial(pod, address, timeout=1), CARD)
        assert not wire.carries(CARD)
    lab.start_agents()
    wait_for(lambda: lab.enrolled("shipper", "siem"), "they are back")
    assert echoes(programs.dial("intruder", server.address), CARD)
