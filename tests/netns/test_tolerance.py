"""What applications bear of their peers' silence is told to the core: keep_mark.c and watch_dials.c, with a reader of
the ring in the place of the core. What the core makes of it is in test_silence.py."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.capture.listeners import PARKED
from support.connection import echoes
from support.parking import TOLERANCE, Answers, Parked
from support.patience import PATIENCE, wait_for
from support.pods import Pods

pytestmark = pytest.mark.ebpf_only("no rule tells what applications bear")

PORT = 8080
TCP = socket.IPPROTO_TCP
KEEPALIVE = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (TCP, socket.TCP_KEEPIDLE, 5), (TCP, socket.TCP_KEEPINTVL, 3))
THREE_PROBES = (TCP, socket.TCP_KEEPCNT, 3)
FOURTEEN_SECONDS = 5_000 + 3 * 3_000


def user_timeout(milliseconds: int) -> tuple[int, int, int]:
    return (TCP, socket.TCP_USER_TIMEOUT, milliseconds)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path, version=request.param) as pods:
        yield pods


class Workloads:
    """Client and server, captured on one node and parked."""

    def __init__(self, pods: Pods) -> None:
        self.pods = pods
        pods.echo(pods.server)
        capture = pods.capture()
        self.answers = []
        for pod, target in ((pods.client, pods.client_target), (pods.server, pods.server_target)):
            captured = capture.enrol(target)
            pods.relay(captured)
            capture.park(captured, on=True)
            self.answers.append(Answers(pod, captured.listeners[PARKED]))
            pods.at_end(self.answers[-1].close)

    def dial(self, *options: tuple[int, int, int], family: int | None = None, at: str = "") -> socket.socket:
        to = (at or self.pods.server_at, PORT)
        connection = self.pods.dial(self.pods.client, to, timeout=PATIENCE, options=options, family=family)
        assert echoes(connection)
        return connection

    def told(self, count: int, *, of: int = 0) -> list[Parked]:
        """The first records of the client (0) or the server (1), once there are so many."""
        wait_for(lambda: len(list(self.answers[of].of(TOLERANCE))) >= count, "the core is told")
        return list(self.answers[of].of(TOLERANCE))


@pytest.fixture
def workloads(pods: Pods) -> Workloads:
    return Workloads(pods)


def values(records: list[Parked]) -> list[tuple[int, int]]:
    """Milliseconds: of keepalive, and of TCP_USER_TIMEOUT."""
    return [(record.value, record.mark) for record in records]


def test_what_was_set_before_is_told_once_it_is_connected(workloads: Workloads) -> None:
    connection = workloads.dial(*KEEPALIVE, THREE_PROBES, user_timeout(4321))
    (record,) = workloads.told(1)
    assert values([record]) == [(FOURTEEN_SECONDS, 4321)]
    assert record.source == connection.getsockname()[:2]
    assert record.destination == connection.getpeername()[:2]


def test_nothing_is_told_of_who_asks_for_nothing(workloads: Workloads) -> None:
    workloads.dial((TCP, socket.TCP_KEEPIDLE, 5), (TCP, socket.TCP_NODELAY, 1))
    workloads.dial(user_timeout(1000))
    assert values(workloads.told(1)) == [(0, 1000)]


def test_what_is_set_later_is_told_at_once(workloads: Workloads) -> None:
    connection = workloads.dial()
    for option in (*KEEPALIVE, THREE_PROBES):
        connection.setsockopt(*option)
    connection.setsockopt(*user_timeout(2000))
    connection.setsockopt(*user_timeout(2000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    connection.setsockopt(*user_timeout(0))
    records = workloads.told(7)
    default = 7200_000 + 9 * 75_000
    assert values(records) == [
        (default, 0),
        (5_000 + 9 * 75_000, 0),
        (5_000 + 9 * 3_000, 0),
        (FOURTEEN_SECONDS, 0),
        (FOURTEEN_SECONDS, 2000),
        (0, 2000),
        (0, 0),
    ]
    assert {record.source for record in records} == {connection.getsockname()[:2]}
    assert {record.destination for record in records} == {connection.getpeername()[:2]}


def test_what_the_kernel_refuses_is_not_told(workloads: Workloads) -> None:
    connection = workloads.dial(KEEPALIVE[0])
    refused = ((socket.TCP_KEEPIDLE, 0), (socket.TCP_KEEPIDLE, 32768), (socket.TCP_KEEPCNT, 128))
    for option, value in (*refused, (socket.TCP_KEEPINTVL, -1), (socket.TCP_USER_TIMEOUT, -1)):
        with pytest.raises(OSError, match="Invalid argument"):
            connection.setsockopt(TCP, option, value)
    connection.setsockopt(TCP, socket.TCP_KEEPCNT, 1)
    default = 7200_000 + 9 * 75_000
    assert values(workloads.told(2)) == [(default, 0), (7200_000 + 75_000, 0)]


def test_a_connection_that_was_accepted_bears_what_its_listener_asked_for(workloads: Workloads) -> None:
    pods = workloads.pods

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in pods.server_at else socket.AF_INET
        listener = socket.create_server((pods.server_at, PORT + 1), family=family)
        for option in (*KEEPALIVE, THREE_PROBES):
            listener.setsockopt(*option)
        return listener

    with pods.server.run(listen) as listener:
        listener.settimeout(PATIENCE)
        dialled = pods.dial(pods.client, (pods.server_at, PORT + 1), timeout=PATIENCE)
        accepted, peer = listener.accept()
        with contextlib.closing(accepted):
            accepted.setsockopt(*user_timeout(7000))
            records = workloads.told(2, of=1)
            assert values(records) == [(FOURTEEN_SECONDS, 0), (FOURTEEN_SECONDS, 7000)]
            assert {record.source for record in records} == {(pods.server_at, PORT + 1)}
            assert {record.destination for record in records} == {peer[:2]}
        dialled.close()


def test_sockets_of_both_families_are_told_of_alike(tmp_path: Path) -> None:
    with Pods(tmp_path, version=4) as pods:
        workloads = Workloads(pods)
        connection = workloads.dial(user_timeout(1000), family=socket.AF_INET6, at=f"::ffff:{pods.server_at}")
        connection.setsockopt(*user_timeout(3000))
        records = workloads.told(2)
        assert values(records) == [(0, 1000), (0, 3000)]
        assert {record.destination for record in records} == {(pods.server_at, PORT)}
        assert {record.source for record in records} == {
            (pods.client_target.addresses[0].compressed, connection.getsockname()[1])
        }
