"""What a workload dials waits until it is known whether anybody answers: programs and ring, with a reader in the place
of the core (support/parking.py)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.listeners import OUTBOUND, PARKED
from nodeseal.capture.node import NodeCapture
from nodeseal.capture.workload import Captured
from support.connection import echoes
from support.netfilter import rule
from support.parking import GONE, SYN, Answers, Ring, Sender, again, refusal
from support.patience import PATIENCE, wait_for
from support.pods import SERVER, Pods
from support.relay import Relay

pytestmark = pytest.mark.ebpf_only("rules park in a queue of packets: test_capture_queue.py")

PORT = 8080


@pytest.fixture(params=["ipv4", "ipv6", "filters"])
def pods(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pods]:
    """Over either family, and once where the kernel has no TCX."""
    with Pods(tmp_path, tcx=request.param != "filters", version=6 if request.param == "ipv6" else 4) as pods:
        yield pods


class Client:
    """The client, captured and parked: with an echo server behind the relay."""

    def __init__(self, pods: Pods) -> None:
        self.pods = pods
        self.before = pods.client.state()
        pods.echo(pods.server)
        self.capture: NodeCapture = pods.capture()
        self.captured: Captured = self.capture.enrol(pods.client_target)
        self.relay: Relay = pods.relay(self.captured)
        self.capture.park(self.captured, on=True)

    @property
    def ring(self) -> int:
        return self.captured.listeners[PARKED]

    def answers(self, *verdicts: bool | None) -> Answers:
        """Answers the SYNs one after the other like that, and all that follow like the last of them."""
        left = list(verdicts or (True,))
        answers = Answers(self.pods.client, self.ring, lambda _syn: left.pop(0) if len(left) > 1 else left[0])
        self.pods.at_end(answers.close)
        return answers

    def dial(self, timeout: float = PATIENCE, **options: object) -> socket.socket:
        return self.pods.dial(self.pods.client, (self.pods.server_at, PORT), timeout=timeout, **options)  # type: ignore[arg-type]

    def begin(self, family: int | None = None) -> socket.socket:
        """A connection that is being made."""

        def connect() -> socket.socket:
            made = socket.socket(family or (socket.AF_INET6 if ":" in self.pods.server_at else socket.AF_INET))
            made.setblocking(False)
            assert made.connect_ex((self.pods.server_at, PORT)) == errno.EINPROGRESS
            return made

        made = self.pods.client.run(connect)
        self.pods.at_end(made.close)
        return made

    def error(self, name: str) -> int:
        return self.capture.errors()[name]


@pytest.fixture
def client(pods: Pods) -> Client:
    return Client(pods)


def test_what_is_released_is_connected(client: Client) -> None:
    answers = client.answers()
    connection = client.dial()
    assert echoes(connection)
    (syn,) = answers.of(SYN)
    assert (syn.source[0], syn.source[1]) == connection.getsockname()[:2]
    assert syn.destination == (client.pods.server_at, PORT)
    assert syn.mark == constants.MARK_RELEASED
    assert [flow.destination for flow in client.relay.flows] == [syn.destination]


def test_it_is_not_connected_before_it_is_released(client: Client) -> None:
    connection = client.begin()
    with Ring(client.ring) as ring:
        (syn,) = ring.wait()
        assert connection.connect_ex((client.pods.server_at, PORT)) == errno.EALREADY
        assert client.relay.flows == []
        sender = Sender(client.pods.client)
        sender.send(again(syn.packet), syn.mark)
        sender.close()
    wait_for(lambda: client.relay.flows, "it is accepted")
    connection.settimeout(PATIENCE)
    assert echoes(connection)


def test_what_is_refused_is_refused(client: Client) -> None:
    client.answers(False)
    with pytest.raises(ConnectionRefusedError):
        client.dial()
    assert client.relay.flows == []


def test_nobody_answers_and_the_application_gives_up_when_it_likes(client: Client) -> None:
    answers = client.answers(None)
    connection = client.begin()
    wait_for(lambda: list(answers.of(SYN)), "a SYN")
    assert not list(answers.of(GONE))
    ends = connection.getsockname()[:2]
    connection.close()
    wait_for(lambda: list(answers.of(GONE)), "it has gone")
    (gone,) = answers.of(GONE)
    assert (gone.source, gone.destination) == (ends, (client.pods.server_at, PORT))
    assert [one.kind for one in answers.seen][-1] == GONE


def test_an_application_that_times_out_has_gone(client: Client) -> None:
    answers = client.answers(None)
    with pytest.raises(TimeoutError):
        client.dial(options=((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500),))
    wait_for(lambda: list(answers.of(GONE)), "it has gone")


def test_while_nobody_reads_it_waits_and_is_served_then(client: Client) -> None:
    connection = client.begin()
    time.sleep(1.5)  # a retransmission
    assert client.relay.flows == []
    answers = client.answers()
    wait_for(lambda: client.relay.flows, "it is accepted")
    connection.settimeout(PATIENCE)
    assert echoes(connection)
    assert len(list(answers.of(SYN))) >= 2


def test_two_generations_read_one_ring_one_after_the_other(client: Client) -> None:
    first = client.answers()
    assert echoes(client.dial())
    first.close()
    waits = [client.begin() for _ in range(3)]
    with client.answers() as second:
        for connection in waits:
            connection.settimeout(PATIENCE)
        wait_for(lambda: len(client.relay.flows) == 4, "they are accepted")
        assert all(echoes(connection) for connection in waits)
        assert len({one.source for one in second.of(SYN)}) == 3
    assert len(list(first.of(SYN))) == 1


def test_a_full_ring_is_counted_and_serves_again(client: Client) -> None:
    sender = Sender(client.pods.client)
    connection = client.begin()
    with Ring(client.ring) as ring:
        (syn,) = ring.wait()
        for _ in range(constants.RING_BYTES // 144 + 10):
            sender.send(again(syn.packet), constants.MARK_CAPTURED)
        assert client.error("park_full") >= 1
        assert constants.RING_BYTES - 144 <= ring.unread <= constants.RING_BYTES
        assert {one.packet[-4:] for one in ring.read()} == {syn.packet[-4:]}
    sender.close()
    client.answers()
    connection.settimeout(PATIENCE)
    wait_for(lambda: client.relay.flows, "the retransmission is served")
    assert echoes(connection)


def test_fast_open_leaves_its_payload_out_and_loses_nothing(client: Client) -> None:
    client.pods.client.sysctl("net/ipv4/tcp_fastopen", 0x5)  # data without a cookie
    answers = client.answers()

    def connect() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in client.pods.server_at else socket.AF_INET)
        made.settimeout(PATIENCE)
        assert made.sendto(b"early", socket.MSG_FASTOPEN, (client.pods.server_at, PORT)) == 5
        return made

    with client.pods.client.run(connect) as connection:
        received = b""
        while len(received) < 5:
            received += connection.recv(5)
        assert received == b"early"
    (syn,) = answers.of(SYN)
    assert len(syn.packet) <= 100
    assert b"early" not in syn.packet


def test_fast_open_is_refused_too(client: Client) -> None:
    client.pods.client.sysctl("net/ipv4/tcp_fastopen", 0x5)
    client.answers(False)

    def connect() -> None:
        with socket.socket(socket.AF_INET6 if ":" in client.pods.server_at else socket.AF_INET) as made:
            made.settimeout(PATIENCE)
            made.sendto(b"early", socket.MSG_FASTOPEN, (client.pods.server_at, PORT))
            made.recv(1)

    with pytest.raises(ConnectionRefusedError):
        client.pods.client.run(connect)


def test_a_mapped_address_is_ipv4(client: Client) -> None:
    answers = client.answers(True, False)
    connection = client.pods.dial(client.pods.client, (f"::ffff:{SERVER}", PORT), family=socket.AF_INET6)
    assert echoes(connection)
    with pytest.raises(ConnectionRefusedError):
        client.pods.dial(client.pods.client, (f"::ffff:{SERVER}", PORT), family=socket.AF_INET6)
    first, *_ = answers.of(SYN)
    assert first.packet[0] >> 4 == 4
    wait_for(lambda: list(answers.of(GONE)), "the refused one has gone")
    (gone,) = answers.of(GONE)
    assert gone.destination == (SERVER, PORT)
    assert gone.source == list(answers.of(SYN))[-1].source


def seconds_of_an_echo_whose_request_is_lost(client: Client) -> float:
    connection = client.dial()
    # The first packet of the two fits into it.
    lost = f"iif lo tcp dport {PORT} tcp flags & psh == psh quota until 110 bytes drop"
    with rule(client.pods.client.name, "type filter hook input priority 0", lost):
        began = time.monotonic()
        assert echoes(connection, b"x" * 20)
        return time.monotonic() - began


def test_first_bytes_that_are_lost_are_soon_sent_again(client: Client) -> None:
    client.answers()
    soon = [seconds_of_an_echo_whose_request_is_lost(client) for _ in range(3)]
    client.capture.park(client.captured, on=False)
    late = [seconds_of_an_echo_whose_request_is_lost(client) for _ in range(3)]
    assert 2 * min(soon) < min(late)


def test_later_ones_have_the_kernels_time_again(client: Client) -> None:
    client.answers()
    connection = client.dial()
    assert echoes(connection)
    (timeout,) = struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 12), 8)
    assert timeout >= 200_000  # tcpi_rto, microseconds
    assert client.error("dial_slow") == client.error("dial_unwatched") == 0


def test_without_the_setting_it_is_accepted_at_once(client: Client) -> None:
    client.capture.park(client.captured, on=False)
    assert echoes(client.dial())
    with Ring(client.ring) as ring:
        assert ring.read() == []
    client.capture.park(client.captured, on=True)
    connection = client.begin()
    with Ring(client.ring) as ring:
        assert [one.kind for one in ring.wait()] == [SYN]
    connection.close()


def test_a_reset_that_lies_is_held(client: Client) -> None:
    answers = client.answers()
    connection = client.dial()
    assert echoes(connection)
    (syn,) = answers.of(SYN)
    sender = Sender(client.pods.client)
    # As the kernel makes it for bytes that find no socket of the core's: from there, and with the mark of the bytes.
    sender.send(refusal(syn.packet), constants.MARK_CAPTURED)
    sender.close()
    wait_for(lambda: client.error("park_reset_held") == 1, "it is held")
    assert echoes(connection)


def test_a_true_reset_passes(client: Client) -> None:
    client.relay.close()
    client.answers()
    with socket.socket(fileno=os.dup(client.captured.listeners[OUTBOUND])) as listener:
        connection = client.dial()
        wait_for(lambda: select.select([listener], [], [], 0)[0], "it is there to be accepted")
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert client.error("park_reset_held") == 0


def test_the_application_can_reset(client: Client) -> None:
    client.answers()
    connection = client.dial()
    assert echoes(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert client.error("park_reset_held") == 0
    assert echoes(client.dial())


def test_a_workload_that_leaves_is_served_to_the_end(client: Client) -> None:
    connection = client.begin()
    with Ring(client.ring) as ring:
        assert ring.wait()
    client.capture.stop_new(client.pods.client_target)
    direct = client.dial()
    assert echoes(direct)
    assert client.relay.flows == []
    client.answers()
    wait_for(lambda: client.relay.flows, "it is accepted")
    connection.settimeout(PATIENCE)
    assert echoes(connection)


def test_removal_leaves_nothing(client: Client) -> None:
    client.answers()
    assert echoes(client.dial())
    client.capture.stop_new(client.pods.client_target)
    client.capture.release(client.pods.client_target)
    assert client.pods.client.state() == client.before
    assert echoes(client.dial())


def test_cleanup_leaves_nothing(client: Client) -> None:
    client.answers()
    assert echoes(client.dial())
    client.capture.close()
    client.pods.cleanup()
    assert client.pods.client.state() == client.before
    assert list(client.pods.run_dir().iterdir()) == []


def test_the_next_agent_has_the_same_ring(client: Client) -> None:
    connection = client.begin()
    with Ring(client.ring) as ring:
        wait_for(lambda: ring.unread, "a SYN")
    later = NodeCapture(client.pods.run_dir(), choice=client.pods.backend)
    later.prepare()
    client.pods.at_end(later.close)
    (adopted,) = later.adopt()
    assert adopted.parking
    made = later.take_listeners(adopted, client.captured.listeners)
    assert made == []  # the core has what is in use, the ring too
    client.captured = adopted
    answers = client.answers()
    wait_for(lambda: client.relay.flows, "it is accepted")
    connection.settimeout(PATIENCE)
    assert echoes(connection)
    assert len(list(answers.of(SYN))) >= 1
    with contextlib.suppress(OSError):
        connection.close()
