"""The control protocol's framing and the pid files that are locks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
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


def test_message_arrives_as_sent(pair: Pair) -> None:
    control_socket.send(pair[0], {"op": "hello", "text": "grüße"})
    assert control_socket.receive(pair[1]) == ({"op": "hello", "text": "grüße"}, [])


def test_descriptors_arrive_in_order_and_close_on_exec(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    sent = [os.open(tmp_path / name, os.O_RDONLY) for name in "ab"]
    control_socket.send(pair[0], {}, sent)
    _message, received = control_socket.receive(pair[1])
    assert [os.read(fd, 1) for fd in received] == [b"a", b"b"]
    assert not any(os.get_inheritable(fd) for fd in received)
    control_socket.close_all([*sent, *received])


def test_large_body_travels_in_a_memfd_unnoticed(pair: Pair) -> None:
    body = {"full": "x" * 3_000_000}
    with (Path("/dev/null")).open() as null:
        control_socket.send(pair[0], body, [null.fileno()])
    message, fds = control_socket.receive(pair[1])
    assert message == body
    assert len(fds) == 1
    control_socket.close_all(fds)


def test_end_of_stream_is_control_closed(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(control_socket.ControlClosed):
        control_socket.receive(pair[1])


def test_sending_to_a_closed_peer_is_control_closed(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(control_socket.ControlClosed):
        control_socket.send(pair[0], {"op": "hello"})


def test_silence_is_a_control_error(pair: Pair) -> None:
    pair[1].settimeout(0.01)
    with pytest.raises(control_socket.ControlError, match="in time"):
        control_socket.receive(pair[1])


@pytest.mark.parametrize("body", [b"not json", b"[1]", b'{"@memfd": 10}', b'{"@memfd": -1}', b"\xff\xfe"])
def test_anything_else_is_a_control_error(pair: Pair, body: bytes) -> None:
    pair[0].send(body)
    with pytest.raises(control_socket.ControlError):
        control_socket.receive(pair[1])


def test_memfd_shorter_than_announced_is_an_error_and_leaks_nothing(pair: Pair) -> None:
    fd = os.memfd_create("short")
    os.write(fd, b"{}")
    socket.send_fds(pair[0], [b'{"@memfd": 100}'], [fd])
    os.close(fd)
    before = open_descriptors()
    with pytest.raises(control_socket.ControlError, match="shorter"):
        control_socket.receive(pair[1])
    assert open_descriptors() == before


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
