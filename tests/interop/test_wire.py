"""What our core says on the wire, and makes of what it hears there, in both roles: facing a peer made of single frames.

The peer as a client runs in the pod `edge`, towards pipeline; as a server in `gate`, which the core of shipper dials.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interop.certificates import issue
from interop.exchange import receive_all
from interop.frames import (
    ACK,
    END_HEADERS,
    SETTINGS,
    Code,
    Frame,
    Frames,
    Kind,
    Listener,
    answer,
    connect,
    data,
    goaway,
    literal,
    trailers,
)
from interop.frames import reset as reset_frame
from interop.hbone import Hbone, client_context
from nodeseal.mesh.model import WorkloadName
from nodeseal.sources.directory.publications import publish
from nodeseal_lab.mesh_state import change_workloads
from nodeseal_lab.plan import NAMESPACE
from support.connection import receive_exactly, reset, silent
from support.lab import RunningLab
from support.patience import PATIENCE, wait_for
from support.programs import Programs

pytestmark = pytest.mark.fast

TEST = 9100
PART = b"a part of the whole"
PING = Frame(Kind.PING, 0, 0, bytes(8))


@pytest.fixture
def client(lab: RunningLab, tmp_path: Path) -> Iterator[Frames]:
    """A tunnel from `edge` to pipeline, made of frames."""
    issue(lab.directory / "ca", "edge").write(tmp_path)
    with Hbone(lab, "edge", "pipeline", client_context(tmp_path, lab.directory / "ca" / "root.pem")) as hbone:
        yield hbone.begin()


@pytest.fixture
def tunnel(lab: RunningLab, programs: Programs, client: Frames) -> tuple[Frames, socket.socket]:
    """The same with a stream, 1, and the end of it in pipeline's application."""
    server = programs.serve("pipeline", silent, TEST)
    client.send(connect(1, f"{lab.address('pipeline')}:{TEST}"))
    assert client.until(Kind.HEADERS, 1).payload == b"\x88"  # 200
    return client, server.connection()


@pytest.fixture(scope="module")
def enrolled_gate(lab: RunningLab) -> None:
    """The node of shipper believes that `gate` is enrolled."""
    change_workloads(lab.lab.mesh, {"gate": {"node": "other-node", "enrolled": True}})
    publish(lab.lab.mesh, "other-node", [WorkloadName(NAMESPACE, "gate")])

    def dials_15008(programs: Programs) -> bool:
        with contextlib.suppress(OSError):
            programs.dial("shipper", (lab.address("gate"), TEST), timeout=2).recv(1)
        return any(row["reason"] == "the peer's port 15008 refuses connections" for row in to_gate(lab))

    with Programs(lab) as programs:
        wait_for(lambda: dials_15008(programs), "the agent of node1 sends what is for gate into a tunnel")


def to_gate(lab: RunningLab) -> list[dict[str, Any]]:
    rows = lab.connections("node1")
    return [row for row in rows if row["destination"] == f"{lab.address('gate')}:{TEST}"]


@pytest.fixture
def listener(lab: RunningLab, enrolled_gate: None, tmp_path: Path) -> Iterator[Listener]:
    """A peer in `gate`."""
    issue(lab.directory / "ca", "gate").write(tmp_path)
    listener = Listener(lab, "gate", tmp_path)
    yield listener
    listener.close()


@pytest.fixture
def dialled(lab: RunningLab, programs: Programs, listener: Listener) -> tuple[Frames, socket.socket, int]:
    """A connection of shipper's application to gate, as far as its CONNECT, and the stream's id."""
    application = programs.begin("shipper", (lab.address("gate"), TEST))
    application.settimeout(PATIENCE)  # its connection is made when the peer has answered
    peer = listener.accept()
    programs.at_end(peer.close)
    while (frame := peer.receive()).kind != Kind.HEADERS:
        pass
    return peer, application, frame.stream


@pytest.fixture
def served(dialled: tuple[Frames, socket.socket, int]) -> tuple[Frames, socket.socket, int]:
    """The same, answered 200."""
    peer, application, stream = dialled
    peer.send(answer(stream, "200"))
    wait_for(lambda: select.select([], [application], [], 0)[1], "its connection is made")
    return dialled


# ---- what we say ----


def test_reset_by_a_servers_application_is_CONNECT_ERROR(tunnel: tuple[Frames, socket.socket]) -> None:
    """RFC 9113 section 8.5."""
    peer, application = tunnel
    reset(application)
    assert peer.until(Kind.RST_STREAM, 1).code == Code.CONNECT_ERROR


def test_reset_by_a_clients_application_is_CONNECT_ERROR(served: tuple[Frames, socket.socket, int]) -> None:
    peer, application, stream = served
    application.sendall(PART)
    assert peer.until(Kind.DATA, stream).payload == PART
    reset(application)
    assert peer.until(Kind.RST_STREAM, stream).code == Code.CONNECT_ERROR


def test_reset_of_an_application_that_waits_for_the_peer_is_CONNECT_ERROR(
    served: tuple[Frames, socket.socket, int],
) -> None:
    """It has ended its side before, so that nothing more is read from it."""
    peer, application, stream = served
    application.sendall(PART)
    application.shutdown(socket.SHUT_WR)
    assert peer.until(Kind.DATA, stream).payload == PART
    reset(application)
    peer.send(data(stream, PART))
    assert peer.until(Kind.RST_STREAM, stream).code == Code.CONNECT_ERROR


# ---- what we take ----


@pytest.mark.parametrize("statuses", [("200",), ("204",), ("299",), ("103", "200"), ("100", "103", "204")])
def test_every_2xx_answer_opens_a_tunnel(dialled: tuple[Frames, socket.socket, int], statuses: tuple[str, ...]) -> None:
    peer, application, stream = dialled
    peer.send(*(answer(stream, status) for status in statuses))
    application.sendall(b"question")
    assert peer.until(Kind.DATA, stream).payload == b"question"
    peer.send(data(stream, b"answer", end=True))
    assert receive_all(application) == b"answer"


@pytest.mark.parametrize("status", ["300", "404", "503", "600"])
def test_no_other_answer_does(dialled: tuple[Frames, socket.socket, int], status: str) -> None:
    peer, application, stream = dialled
    peer.send(answer(stream, status))
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        application.recv(1)
    assert peer.until(Kind.RST_STREAM, stream).code == Code.CANCEL


@pytest.mark.parametrize(
    ("status", "why", "reason"),
    [
        ("503", "", "the peer could not reach the application"),
        ("503", "envoy; error=no_such_error", "the peer could not reach the application"),
        ("503", "envoy; error=connection_refused", "the application refused the peer"),
        ("502", "envoy; details=x; error=destination_ip_unroutable", "the peer has no way to the application"),
        ("504", "", "the application does not answer the peer"),
        ("503", "envoy; error=connection_timeout, waypoint", "the application does not answer the peer"),
        ("503", "envoy; error=connection_limit_reached", "the peer has met a limit"),
        ("403", "envoy; error=http_request_denied", "the peer's policy denied it"),
        ("404", "", "the peer refused the request"),
    ],
)
def test_a_refusal_says_why(
    lab: RunningLab, dialled: tuple[Frames, socket.socket, int], status: str, why: str, reason: str
) -> None:
    """RFC 9209, of intermediaries of whatever make; else the status says what it can."""
    peer, application, stream = dialled
    source = f"{lab.address('shipper')}:{application.getsockname()[1]}"
    peer.send(answer(stream, status, why=why))
    application.settimeout(2)  # of a peer that is silent it is told nothing
    with pytest.raises(OSError):  # noqa: PT011 - each in its own way
        application.recv(1)
    (row,) = (row for row in to_gate(lab) if row["source"] == source)
    assert row["reason"] == reason


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(lambda stream: [data(stream, PART)], id="data"),
        pytest.param(lambda stream: [answer(stream, "103"), data(stream, PART)], id="data-behind-an-interim-answer"),
        pytest.param(lambda stream: [answer(stream, "103"), data(stream, end=True)], id="end-behind-an-interim-answer"),
        pytest.param(lambda stream: [answer(stream, "103", end=True)], id="interim-answer-that-ends"),
    ],
)
def test_nothing_comes_before_the_answer(
    dialled: tuple[Frames, socket.socket, int], listener: Listener, frames: Callable[[int], list[Frame]]
) -> None:
    peer, application, stream = dialled
    listener.close()  # it would be tried anew where it is the tunnel that has broken
    peer.send(*frames(stream))
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        application.recv(1)


# ---- violations: a GOAWAY that says why, an orderly end of TLS, and resets for all that ran in the tunnel ----


def assert_told(peer: Frames, code: Code) -> None:
    """Until the end, which is an orderly one: a GOAWAY with this code is the last."""
    last = list(peer.rest())[-1]
    assert (last.kind, last.code) == (Kind.GOAWAY, code)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param([data(3, end=True), data(3, b"late")], Code.STREAM_CLOSED, id="data-behind-the-end"),
        pytest.param([reset_frame(3, Code.CANCEL), data(3, b"late")], Code.STREAM_CLOSED, id="data-behind-a-reset"),
        pytest.param([reset_frame(3, Code.CANCEL), trailers(3)], Code.STREAM_CLOSED, id="headers-behind-a-reset"),
        pytest.param([connect(7, "x"), connect(5, "x")], Code.PROTOCOL_ERROR, id="lower-id"),
        pytest.param([data(9, b"early")], Code.PROTOCOL_ERROR, id="idle"),
        pytest.param([Frame(Kind.PING, 0, 3, bytes(8))], Code.PROTOCOL_ERROR, id="ping-on-a-stream"),
    ],
)
def test_violation_is_told_and_resets_all(
    lab: RunningLab, tunnel: tuple[Frames, socket.socket], frames: list[Frame], code: Code
) -> None:
    peer, application = tunnel
    peer.send(data(1, PART))
    assert receive_exactly(application, len(PART)) == PART
    peer.send(connect(3, f"{lab.address('pipeline')}:{TEST}"))
    assert peer.until(Kind.HEADERS, 3).payload == b"\x88"
    peer.send(*frames)
    assert_told(peer, code)
    with pytest.raises(ConnectionResetError):
        application.recv(1)


def test_frames_on_a_stream_that_we_have_reset_are_dropped(tunnel: tuple[Frames, socket.socket]) -> None:
    peer, application = tunnel
    reset(application)
    assert peer.until(Kind.RST_STREAM, 1).code == Code.CONNECT_ERROR
    peer.send(data(1, PART), data(1, end=True), PING)
    assert peer.until(Kind.PING).flags & ACK


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param([PING] * 3000, id="ping"),
        pytest.param([SETTINGS] * 3000, id="settings"),
        pytest.param(
            [Frame(Kind.HEADERS, 0, 3, literal(2, "CONNECT"))] + [Frame(Kind.CONTINUATION, 0, 3)] * 3000,
            id="continuation",
        ),
    ],
)
def test_flood_is_told_to_calm_down(tunnel: tuple[Frames, socket.socket], flood: list[Frame]) -> None:
    """It stops at 1,000 answers that wait: the core gets many more at once, if not at the first try."""
    peer, application = tunnel
    told: list[Frame] = []

    def goes_too_far() -> bool:
        peer.send(*flood)
        peer.socket.settimeout(0.5)
        try:
            while not told or told[-1].kind != Kind.GOAWAY:
                told.append(peer.receive())
        except TimeoutError:
            return False
        return True

    wait_for(goes_too_far, "the flood ends the connection")
    assert told[-1].code == Code.ENHANCE_YOUR_CALM
    with pytest.raises(ConnectionResetError):
        application.recv(1)


def test_requests_that_are_reset_at_once_are_told_to_calm_down(lab: RunningLab, client: Frames) -> None:
    """CVE-2023-44487."""
    target = f"{lab.address('pipeline')}:{TEST}"
    for begin in range(1, 4000, 200):
        streams = range(begin, begin + 200, 2)
        client.send(*(frame for stream in streams for frame in (connect(stream, target), reset_frame(stream, 8))))
    assert_told(client, Code.ENHANCE_YOUR_CALM)


# ---- ends: a stream that was cut is never an orderly one ----


def close_at_once(peer: Frames, stream: int) -> None:
    """TCP's end, without that of TLS."""
    peer.close()


def end_tls(peer: Frames, stream: int) -> None:
    peer.close_notify()


def reset_tcp(peer: Frames, stream: int) -> None:
    # An SSLSocket's detach keeps the descriptor, so that close() is the last reference.
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def goaway_and_close(peer: Frames, stream: int) -> None:
    peer.send(goaway(stream, Code.NO_ERROR))
    peer.close_notify()


def goaway_for_an_error(peer: Frames, stream: int) -> None:
    peer.send(goaway(stream, Code.INTERNAL_ERROR))
    peer.close_notify()


def reset_with(code: Code) -> Callable[[Frames, int], None]:
    def cut(peer: Frames, stream: int) -> None:
        peer.send(reset_frame(stream, code))

    return cut


def end_by_trailers(peer: Frames, stream: int) -> None:
    peer.send(trailers(stream))


def second_answer(peer: Frames, stream: int) -> None:
    peer.send(Frame(Kind.HEADERS, END_HEADERS | 1, stream, literal(8, "200")))


CUTS = [
    pytest.param(close_at_once, id="tcp-ends"),
    pytest.param(end_tls, id="tls-ends"),
    pytest.param(reset_tcp, id="tcp-is-reset"),
    pytest.param(goaway_and_close, id="goaway-and-end"),
    pytest.param(goaway_for_an_error, id="goaway-with-an-error"),
    *(pytest.param(reset_with(code), id=f"rst-{code.name.lower()}") for code in Code),
    pytest.param(end_by_trailers, id="trailers"),
]


@pytest.mark.parametrize("cut", [*CUTS, pytest.param(second_answer, id="second-answer")])
def test_what_a_server_cuts_is_reset(
    served: tuple[Frames, socket.socket, int], cut: Callable[[Frames, int], None]
) -> None:
    peer, application, stream = served
    peer.send(data(stream, PART))
    assert receive_exactly(application, len(PART)) == PART
    cut(peer, stream)
    with pytest.raises(ConnectionResetError):
        application.recv(1)


@pytest.mark.parametrize("cut", CUTS)
def test_what_a_client_cuts_is_reset(tunnel: tuple[Frames, socket.socket], cut: Callable[[Frames, int], None]) -> None:
    peer, application = tunnel
    peer.send(data(1, PART))
    assert receive_exactly(application, len(PART)) == PART
    cut(peer, 1)
    with pytest.raises(ConnectionResetError):
        application.recv(1)


def test_what_a_server_has_ended_is_whole(served: tuple[Frames, socket.socket, int]) -> None:
    """Also when it wants no more of ours (RFC 9113 section 8.1)."""
    peer, application, stream = served
    peer.send(data(stream, PART, end=True), reset_frame(stream, Code.NO_ERROR))
    assert receive_all(application) == PART


def test_what_a_client_has_ended_is_whole_and_what_it_does_not_take_is_reset(
    lab: RunningLab, tunnel: tuple[Frames, socket.socket]
) -> None:
    """As with a peer that has closed its socket: NO_ERROR is a server's word for "enough" (section 8.1)."""
    peer, application = tunnel
    peer.send(data(1, PART, end=True), reset_frame(1, Code.NO_ERROR))
    assert receive_all(application) == PART

    def writes() -> bool:
        application.send(b"never taken")
        return False

    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        wait_for(writes, "the application's bytes are refused")
    rows = [row for row in lab.connections("node2") if row["destination"] == f"{lab.address('pipeline')}:{TEST}"]
    latest = min((row for row in rows if row["state"] == "closed"), key=lambda row: float(row["closed_seconds"]))
    assert latest["reason"] == "the peer reset the stream"
