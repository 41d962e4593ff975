"""The control socket's framing and the pid files that are locks."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nodeseal.linux import control_socket, lock_file

Pair = tuple[socket.socket, socket.socket]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.settimeout(5)
        right.settimeout(5)
        yield left, right


def send(connection: socket.socket, body: bytes, fds: Sequence[int] = ()) -> None:
    with control_socket.packed(body, fds) as message:
        control_socket.send(connection, message)


def test_message_arrives_as_sent(pair: Pair) -> None:
    send(pair[0], b'{"op":"hello"}')
    assert control_socket.receive(pair[1]) == (b'{"op":"hello"}', [])


def test_descriptors_arrive_in_order_and_close_on_exec(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    sent = [os.open(tmp_path / name, os.O_RDONLY) for name in "ab"]
    send(pair[0], b"{}", sent)
    _message, received = control_socket.receive(pair[1])
    assert [os.read(fd, 1) for fd in received] == [b"a", b"b"]
    assert not any(os.get_inheritable(fd) for fd in received)
    control_socket.close_all([*sent, *received])


def test_large_body_travels_in_a_memfd_unnoticed(pair: Pair) -> None:
    body = b"x" * 3_000_000
    with (Path("/dev/null")).open() as null:
        send(pair[0], body, [null.fileno()])
    received, fds = control_socket.receive(pair[1])
    assert received == body
    assert len(fds) == 1
    control_socket.close_all(fds)


def test_end_of_stream_is_control_closed(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(control_socket.ControlClosed):
        control_socket.receive(pair[1])


def test_sending_to_a_closed_peer_is_control_closed(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(control_socket.ControlClosed):
        send(pair[0], b"{}")


def test_silence_is_a_control_error(pair: Pair) -> None:
    pair[1].settimeout(0.01)
    with pytest.raises(control_socket.ControlError, match="in time"):
        control_socket.receive(pair[1])


@pytest.mark.parametrize("body", [b'{"@memfd": 10}', b'{"@memfd": 0}'])
def test_body_that_is_announced_and_does_not_come_is_a_control_error(pair: Pair, body: bytes) -> None:
    pair[0].send(body)
    with pytest.raises(control_socket.ControlError, match="does not carry"):
        control_socket.receive(pair[1])


def memfd(*seals: int) -> int:
    fd = os.memfd_create("body", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"{}")
    for seal in seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    return fd


SEALS = (fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(lambda: memfd(*SEALS), "shorter", id="shorter than announced"),
        pytest.param(lambda: memfd(), "may still change", id="without seals"),
        pytest.param(lambda: memfd(fcntl.F_SEAL_SHRINK), "may still change", id="half sealed"),
        pytest.param(lambda: os.open("/dev/zero", os.O_RDONLY), "cannot be read", id="a device"),
        pytest.param(lambda: os.eventfd(0), "cannot be read", id="what never has anything to read"),
    ],
)
def test_body_that_is_no_sealed_memory_is_an_error_and_leaks_nothing(
    pair: Pair, make: Callable[[], int], why: str
) -> None:
    fd = make()
    socket.send_fds(pair[0], [b'{"@memfd": 100}'], [fd])
    os.close(fd)
    before = open_descriptors()
    with pytest.raises(control_socket.ControlError, match=why):
        control_socket.receive(pair[1])
    assert open_descriptors() == before


def test_sent_body_leaves_no_descriptor(pair: Pair) -> None:
    before = open_descriptors()
    pair[1].close()
    with pytest.raises(control_socket.ControlClosed):
        send(pair[0], b"x" * 3_000_000)
    assert open_descriptors() == before - 1


def test_control_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "core.sock"
    with control_socket.listen(str(path)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_stale_control_socket_is_replaced(tmp_path: Path) -> None:
    control_socket.listen(str(tmp_path / "s")).close()
    control_socket.listen(str(tmp_path / "s")).close()


def test_peer_credentials_name_the_other_process(pair: Pair) -> None:
    assert control_socket.peer_credentials(pair[0]) == (os.getpid(), os.geteuid())


def test_second_lock_names_the_holder(tmp_path: Path) -> None:
    lock = lock_file.LockFile(tmp_path / "agent.lock")
    code = (
        "import sys; from pathlib import Path; from nodeseal.linux.lock_file import *\n"
        "try: LockFile(Path(sys.argv[1]))\n"
        "except AlreadyLocked as error: print(error.pid)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(lock.path)], capture_output=True, text=True, timeout=30, check=True
    )
    assert out.stdout.strip() == str(os.getpid())
    lock.release()


def test_lock_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "agent.lock"
    code = "import sys; from pathlib import Path; from nodeseal.linux.lock_file import *; LockFile(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(path)], timeout=30, check=True)
    assert path.exists()
    assert lock_file.holder(path) is None
    lock_file.LockFile(path).release(remove=True)
    assert not path.exists()


def test_holder_of_no_file_is_none(tmp_path: Path) -> None:
    assert lock_file.holder(tmp_path / "none") is None
