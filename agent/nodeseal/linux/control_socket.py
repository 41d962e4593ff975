"""The control socket between the agent and the splice core: messages, and descriptors beside them.

A Unix SOCK_SEQPACKET socket in the run directory carries one message at a time, a JSON object
(nodeseal.contracts.core); file descriptors ride along by SCM_RIGHTS (unix(7)). A body of more than INLINE_MAX bytes
travels in a sealed memfd, which is then the message's first descriptor; neither side's caller notices.

What is here works on blocking sockets, those with a timeout, and those that do not block; see control_channel for the
event loop.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

INLINE_MAX = 32 * 1024
MESSAGE_MAX = 256 * 1024 * 1024  # far above any one part of a mesh state, or of the rows of all connections
DESCRIPTORS_MAX = 16
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MEMFD = re.compile(rb'\{"@memfd": ?([0-9]{1,12})\}')
"""What stands in the place of a body that is in a memfd: its size in bytes."""


class ControlError(Exception):
    """The other side of the control socket does not keep to the protocol, or did not answer in time."""


class ControlClosed(ControlError):
    """The other side closed the control socket."""


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors; one that is already closed is passed over."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def listen(path: str, kind: socket.SocketKind = socket.SOCK_SEQPACKET, backlog: int = 8) -> socket.socket:
    """A listening socket at `path`, mode 0600. A stale file is replaced: the caller holds the lock. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        previous = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(previous)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that made the other end, as the kernel noted them (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


class Packed(NamedTuple):
    """A message in the form of sendmsg(2)."""

    body: bytes
    ancillary: list[tuple[int, int, array.array[int]]]


@contextlib.contextmanager
def packed(body: bytes, fds: Sequence[int] = ()) -> Iterator[Packed]:
    """A message, to be sent within the context; `fds` stay the caller's. Raises ControlError if it is too large."""
    if len(fds) >= DESCRIPTORS_MAX:
        raise ControlError(f"control message with {len(fds)} descriptors; at most {DESCRIPTORS_MAX - 1} fit")
    if len(body) > MESSAGE_MAX:
        raise ControlError(f"control message of {len(body)} bytes; at most {MESSAGE_MAX} are taken")
    descriptors = list(fds)
    memfd = -1
    if len(body) > INLINE_MAX:
        memfd = _sealed_memfd(body)
        descriptors.insert(0, memfd)
        body = b'{"@memfd": %d}' % len(body)
    try:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        yield Packed(body, [rights] if descriptors else [])
    finally:
        if memfd >= 0:
            os.close(memfd)


def send(connection: socket.socket, message: Packed) -> None:
    """Sends one message; the kernel duplicates its descriptors.

    Raises ControlError if the socket's timeout passes, ControlClosed if nobody reads; BlockingIOError when a socket
    that does not block has no room.
    """
    try:
        connection.sendmsg([message.body], message.ancillary)
    except BlockingIOError:
        raise
    except TimeoutError as error:
        raise ControlError("the control socket's other end does not read") from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ControlClosed("the control socket's other end is gone") from error
    except OSError as error:
        raise ControlError(f"cannot send on the control socket: {error.strerror}") from error


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The next message's body and descriptors (close-on-exec, the caller's to close), within the socket's timeout.

    Raises ControlClosed at the end of the stream, ControlError for a timeout or a message that is cut off, and
    BlockingIOError when a socket that does not block has none; no descriptor stays open then.
    """
    try:
        # Not socket.recv_fds: it drops its flags on Python 3.11, and with them close-on-exec.
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        body, ancillary, flags, _address = connection.recvmsg(INLINE_MAX + 1, room, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except TimeoutError as error:
        raise ControlError("no message on the control socket in time") from error
    except ConnectionResetError as error:
        raise ControlClosed("the control socket's other end is gone") from error
    except OSError as error:
        raise ControlError(f"cannot read from the control socket: {error.strerror}") from error
    fds = _descriptors(ancillary)
    try:
        if not body and not fds:
            raise ControlClosed("the control socket's other end is gone")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ControlError("a control message was cut off")
        if (announced := _MEMFD.fullmatch(body)) is not None:
            body = _read_memfd(int(announced[1]), fds)
    except BaseException:
        close_all(fds)
        raise
    return body, fds


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def _sealed_memfd(body: bytes) -> int:
    fd = -1
    try:
        fd = os.memfd_create("nodeseal-control", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(body)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise ControlError(f"no memory for a control message: {error.strerror}") from error
    return fd


def _read_memfd(size: int, fds: list[int]) -> bytes:
    if not 0 < size <= MESSAGE_MAX or not fds:
        raise ControlError("a control message announces a body that it does not carry")
    fd = fds.pop(0)
    try:
        # Only memory has seals: to read from anything else may take for ever.
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ControlError("a control message's body is in a file that may still change")
        chunks = []
        offset = 0
        while offset < size:
            chunk = os.pread(fd, size - offset, offset)
            if not chunk:
                raise ControlError("a control message's body is shorter than announced")
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)
    except OSError as error:
        raise ControlError(f"a control message's body cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
