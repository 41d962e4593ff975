"""A path goes silent: connections end when their applications cannot bear it any longer, beside two pods without
nodeseal on the same nodes whose applications bear the same.

shipper (node1) and pipeline (node2) are enrolled; guest (node1) and intruder (node2) are not.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.connection import echo, echoes, family_of
from support.lab import RunningLab, running_lab
from support.patience import PATIENCE, wait_for
from support.programs import Programs, Worker

pytestmark = pytest.mark.ebpf_only("no rule tells what applications bear")

IP_VERSIONS = (4, 6)
TCP = socket.IPPROTO_TCP
USER_TIMEOUT = ((TCP, socket.TCP_USER_TIMEOUT, 3000),)
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (TCP, socket.TCP_KEEPIDLE, 1),
    (TCP, socket.TCP_KEEPINTVL, 1),
    (TCP, socket.TCP_KEEPCNT, 2),
)
OTHERWISE_S = 25.0
"""Somewhat less than what is borne of a peer if the application has not said."""
TIMES = 3.0
PATH = "silence"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    pods, settings = ("guest:node1:plain",), {"connect": "truthful"}
    with running_lab(tmp_path_factory.mktemp("silence"), more_pods=pods, settings=settings, ipv6=True) as lab:
        yield lab


def nft(netns: str, command: str) -> None:
    subprocess.run(["ip", "netns", "exec", netns, "nft", "-f", "-"], input=command, text=True, check=True, timeout=10)


@contextlib.contextmanager
def silence(lab: RunningLab) -> Iterator[None]:
    """node1 forwards nothing."""
    netns = lab.lab.plan.node("node1").netns
    nft(netns, f"table inet {PATH} {{ chain forwarded {{ type filter hook forward priority 0; drop; }}; }}")
    try:
        yield
    finally:
        nft(netns, f"delete table inet {PATH}")


def sends_until_it_ends(connection: socket.socket) -> float:
    """The time from now to the end."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)
    return time.monotonic() - began


def waits_until_it_ends(connection: socket.socket) -> float:
    """The same of one that has nothing to say."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        assert connection.recv(1) == b""
    return time.monotonic() - began


def listen(address: str) -> socket.socket:
    return socket.create_server((address, 0), family=family_of(address))


class Ends:
    """A connection of two enrolled pods and one of two others, alike."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._servers = {pod: programs.serve(pod, echo) for pod in ("pipeline", "intruder")}

    def dial(self, client: str, server: str, options: tuple[tuple[int, int, int], ...] = ()) -> socket.socket:
        connection = self._programs.dial(client, self._servers[server].address)
        assert echoes(connection)
        for option in options:
            connection.setsockopt(*option)
        connection.settimeout(None)
        return connection


@pytest.fixture
def ends(programs: Programs) -> Ends:
    return Ends(programs)


def check_alike(enrolled: Worker, other: Worker) -> None:
    """They end about as late."""
    natively = other.result()
    assert natively < OTHERWISE_S / TIMES
    with_core = enrolled.result()
    assert natively / TIMES < with_core < natively * TIMES


@pytest.mark.parametrize(
    ("options", "until_it_ends"), [(USER_TIMEOUT, sends_until_it_ends), (KEEPALIVE, waits_until_it_ends)]
)
def test_a_client_bears_as_much_as_without_nodeseal(
    lab: RunningLab, programs: Programs, ends: Ends, options: tuple[tuple[int, int, int], ...], until_it_ends: object
) -> None:
    hasty, native = ends.dial("shipper", "pipeline", options), ends.dial("guest", "intruder", options)
    other = ends.dial("shipper", "pipeline")
    assert lab.outbound(hasty)["mtls"] is True
    with silence(lab):
        workers = [programs.thread(lambda one=one: until_it_ends(one)) for one in (hasty, native)]  # type: ignore[misc, operator]
        check_alike(*workers)
    # In the same tunnel, which goes on: nobody else had asked for so little patience.
    other.settimeout(PATIENCE)
    assert echoes(other)


def test_a_server_bears_as_much_as_without_nodeseal(lab: RunningLab, programs: Programs, ends: Ends) -> None:
    """In a tunnel that has not borne a silence before: one that has may notice the next one later, when TCP sends again
    what was not acknowledged."""
    accepted: dict[str, socket.socket] = {}
    dialled: list[socket.socket] = []
    for client, pod in (("siem", "pipeline"), ("guest", "intruder")):
        with lab.run(pod, functools.partial(listen, programs.at(pod))) as listener:
            for option in KEEPALIVE:
                listener.setsockopt(*option)
            listener.settimeout(PATIENCE)
            dialled.append(programs.dial(client, listener.getsockname()[:2]))
            accepted[pod], _ = listener.accept()
            programs.at_end(accepted[pod].close)
            accepted[pod].settimeout(None)
    other = ends.dial("siem", "pipeline")
    with silence(lab):
        workers = [programs.thread(lambda one=one: waits_until_it_ends(one)) for one in accepted.values()]  # type: ignore[misc]
        check_alike(*workers)
    other.settimeout(PATIENCE)
    assert echoes(other)
    # The client is told, as soon as it can be.
    dialled[0].settimeout(PATIENCE)
    with contextlib.suppress(ConnectionResetError):
        assert dialled[0].recv(1) == b""


def test_plaintext_through_the_core_bears_as_much(lab: RunningLab, programs: Programs, ends: Ends) -> None:
    hasty, native = ends.dial("shipper", "intruder", USER_TIMEOUT), ends.dial("guest", "intruder", USER_TIMEOUT)
    assert lab.outbound(hasty)["mtls"] is False
    with silence(lab):
        check_alike(*(programs.thread(lambda one=one: sends_until_it_ends(one)) for one in (hasty, native)))  # type: ignore[misc]


def test_a_short_silence_ends_nothing(lab: RunningLab, programs: Programs, ends: Ends) -> None:
    patient = [ends.dial("shipper", "pipeline", (*KEEPALIVE[:3], (TCP, socket.TCP_KEEPCNT, 20))) for _ in range(3)]
    other = ends.dial("shipper", "pipeline", USER_TIMEOUT)
    sender = programs.thread(lambda: sends_until_it_ends(other))
    with silence(lab):
        wait_for(lambda: not sender.running, "the least patient of them ends")
    for one in patient:
        one.settimeout(PATIENCE)
        assert echoes(one)


def test_a_node_may_give_up_what_is_not_acknowledged(tmp_path: Path) -> None:
    """Of two connections in one tunnel the one whose applications bear more, both of them, goes on."""
    settings = {"connect": "truthful", "unacknowledged_limit": "3s"}
    with running_lab(tmp_path, settings=settings) as lab, Programs(lab) as programs:
        patience = (TCP, socket.TCP_USER_TIMEOUT, 100_000)
        server = programs.serve("pipeline", echo, prepare=lambda listener: listener.setsockopt(*patience))
        other, patient = (programs.dial("shipper", server.address) for _ in range(2))
        assert echoes(other)
        assert echoes(patient)
        patient.setsockopt(*patience)
        other.settimeout(None)
        with silence(lab):
            assert programs.thread(lambda: sends_until_it_ends(other)).result() < OTHERWISE_S
        assert echoes(patient)
