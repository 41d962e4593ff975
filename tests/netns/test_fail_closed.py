"""With both ends enrolled, whatever dies: the client gets an error or hangs, and nothing crosses in plaintext."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Iterator

import pytest

from support.connection import echoes, family_of, receive_exactly
from support.lab import RunningLab, running_lab
from support.patience import wait_for
from support.programs import Programs
from support.server import Server
from support.sniffer import Sniffer

IP_VERSIONS = (4, 6)
CARD = b"card=4111 1111 1111 1111;"
NODES = ("node1", "node2")
ENROLLED = ("shipper", "siem", "pipeline")
_TCP_INFO_TOTAL_RETRANS = 100  # struct tcp_info, linux/tcp.h


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab whose processes are killed."""
    with running_lab(tmp_path_factory.mktemp("closed"), more_pods=("guest:node1:plain",), ipv6=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def recovery(lab: RunningLab) -> Iterator[None]:
    """Afterwards every agent and core runs again, and connections work: nothing is broken for good."""
    yield
    for node in NODES:
        _continue(lab, node)
    lab.start_agents()
    wait_for(lambda: lab.enrolled(*ENROLLED), "everything is enrolled again")
    with Programs(lab) as programs:
        for source, target in (("shipper", "pipeline"), ("pipeline", "siem")):
            server = programs.serve(target)
            wait_for(lambda s=source, t=server: _works(programs, s, t), f"{source} reaches {target} again")


def kill_agent_and_core(lab: RunningLab, node: str) -> None:
    """kill -9 of both."""
    lab.kill_agent(node)
    lab.kill_core(node)


def stop_agent_and_kill_core(lab: RunningLab, node: str) -> None:
    """The agent hangs, so that nobody starts another core."""
    os.kill(lab.agent_pid(node), signal.SIGSTOP)
    lab.kill_core(node)


DEATHS = pytest.mark.parametrize("death", [kill_agent_and_core, stop_agent_and_kill_core])
DEAD_NODES = pytest.mark.parametrize("dead", [("node1",), ("node2",), NODES], ids="+".join)
PAIRS = [("shipper", "pipeline"), ("pipeline", "siem")]


@DEATHS
@DEAD_NODES
def test_new_connections_never_cross_in_plaintext(
    lab: RunningLab, programs: Programs, death: Callable[[RunningLab, str], None], dead: tuple[str, ...]
) -> None:
    """Both directions, so that the dead node is the client's once and the server's once."""
    servers = {target: programs.serve(target) for _, target in PAIRS}
    for node in dead:
        death(lab, node)
    with programs.sniff() as wire:
        attempts = [Attempt(lab, programs, source, servers[target]) for source, target in PAIRS]
        wait_for(lambda: all(attempt.is_over() for attempt in attempts), "the clients fail, or hang")
        assert_nothing_readable(wire, servers.values())
    assert [server.peers for server in servers.values()] == [[], []]


@pytest.mark.both_backends
def test_new_connections_between_pods_of_a_dead_node_never_cross_in_plaintext(
    lab: RunningLab, programs: Programs
) -> None:
    server = programs.serve("siem")
    kill_agent_and_core(lab, "node1")
    with programs.sniff_pod("siem") as wire:
        attempt = Attempt(lab, programs, "shipper", server)
        wait_for(attempt.is_over, "the client fails, or hangs")
        assert_nothing_readable(wire, [server])
    assert server.peers == []


@DEATHS
def test_plaintext_from_outside_does_not_get_past_a_dead_core(
    lab: RunningLab, programs: Programs, death: Callable[[RunningLab, str], None]
) -> None:
    """Nobody could say whether it is allowed: the workload may be strict."""
    server = programs.serve("pipeline")
    death(lab, "node2")
    attempt = Attempt(lab, programs, "guest", server)
    wait_for(attempt.is_over, "the client fails, or hangs")
    assert server.peers == []


@pytest.mark.both_backends
@pytest.mark.parametrize("dead", NODES)
def test_live_connection_never_goes_on_in_plaintext(lab: RunningLab, programs: Programs, dead: str) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client, CARD)
    with programs.sniff() as wire:
        kill_agent_and_core(lab, dead)
        # The client does not give up by itself.
        writer = programs.thread(lambda: send_until_it_fails(client))
        writer.result()
        assert_nothing_readable(wire, [server])


@pytest.mark.parametrize("dead", NODES)
def test_live_connection_is_ended_when_a_core_dies(lab: RunningLab, programs: Programs, dead: str) -> None:
    server = programs.serve("pipeline")
    client = programs.dial("shipper", server.address)
    assert echoes(client, CARD)
    kill_agent_and_core(lab, dead)
    with contextlib.suppress(ConnectionError):
        assert client.recv(1) == b""


def test_core_that_dies_under_a_running_agent_leaks_nothing(lab: RunningLab, programs: Programs) -> None:
    """A client that dials all the time, while the near and the far core are killed and replaced."""
    server = programs.serve("pipeline")
    with programs.sniff() as wire:
        for node in NODES:
            old = lab.core_pid(node)
            lab.kill_core(node)
            wait_for(lambda: _works(programs, "shipper", server), "new connections work again")
            assert lab.core_pid(node) != old
        assert_nothing_readable(wire, [server])


@pytest.mark.both_backends
def test_agents_that_come_back_open_the_way_again(lab: RunningLab, programs: Programs) -> None:
    server = programs.serve("pipeline")
    for node in NODES:
        kill_agent_and_core(lab, node)
    attempt = Attempt(lab, programs, "shipper", server)
    wait_for(attempt.is_over, "the client fails, or hangs")
    with programs.sniff() as wire:
        lab.start_agents()
        wait_for(lambda: _works(programs, "shipper", server), "new connections work again")
        assert_nothing_readable(wire, [server])


class Attempt:
    """A client that dials, and sends the card number as soon as it can."""

    def __init__(self, lab: RunningLab, programs: Programs, pod: str, server: Server) -> None:
        def begin() -> socket.socket:
            client = socket.socket(family_of(server.address[0]))
            client.setblocking(False)
            client.connect_ex(server.address)
            return client

        self._client = lab.run(pod, begin)
        programs.at_end(self._client.close)
        self._sent = 0

    def is_over(self) -> bool:
        """Whether it was refused or reset or was told that it has ended, or hangs: it had to send something again, or
        all that it sent was acknowledged, by whoever has it, and nothing more will happen."""
        try:
            if not self._sent:
                self._sent = self._client.send(CARD)
        except BlockingIOError:
            pass
        except OSError:
            return True
        poll = select.poll()
        poll.register(self._client, select.POLLRDHUP)
        if poll.poll(0):
            return True
        info = self._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        if struct.unpack_from("=I", info, _TCP_INFO_TOTAL_RETRANS)[0]:
            return True
        unacknowledged = struct.unpack("=i", fcntl.ioctl(self._client, termios.TIOCOUTQ, bytes(4)))[0]
        return self._sent > 0 and unacknowledged == 0


def assert_nothing_readable(wire: Sniffer, servers: Iterable[Server]) -> None:
    """Neither the card number nor a single byte to or from the servers' own ports."""
    packets = wire.cut()
    ports = {server.address[1] for server in servers}
    assert not any(CARD in packet.payload for packet in packets)
    direct = [packet for packet in packets if ports & {packet.source_port, packet.destination_port}]
    assert [packet for packet in direct if packet.payload] == []


def send_until_it_fails(client: socket.socket) -> None:
    """Sends the card number until the connection is broken."""
    with contextlib.suppress(OSError):
        while True:
            client.sendall(CARD)


def _works(programs: Programs, source: str, server: Server) -> bool:
    """Whether a new connection works, now. One that hangs is given up when it has to send something again."""
    try:
        client = programs.dial(source, server.address, timeout=5)
        client.sendall(CARD)
        return receive_exactly(client, len(CARD)) == CARD
    except (OSError, EOFError):
        return False


def _continue(lab: RunningLab, node: str) -> None:
    """Lets an agent that was stopped go on."""
    if lab.agent_runs(node):
        os.kill(lab.agent_pid(node), signal.SIGCONT)
