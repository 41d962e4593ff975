"""The control protocol between the agent and the splice core.

A Unix SOCK_SEQPACKET socket in the run directory carries one JSON object a message; file descriptors ride along by
SCM_RIGHTS (unix(7)). A body of more than INLINE_MAX bytes travels in a sealed memfd, which is then the message's first
descriptor; neither side's caller notices. Requests are {"op": name, ...}, answers {"ok": true, ...} or
{"ok": false, "error": one line}; a request is answered before the next one is read.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PROTOCOL = 4
MESH_PART = 1000
"""Most workloads and services in one message. A mesh state goes over in parts: writing and reading JSON keeps the
interpreter's lock, and whatever else is to run in the agent or in the core, the decisions above all, waits for it."""
INLINE_MAX = 32 * 1024
MESSAGE_MAX = 256 * 1024 * 1024  # far above any one part of a mesh state, or the rows of all connections
DESCRIPTORS_MAX = 16
_MEMFD_KEY = "@memfd"

Message = dict[str, Any]


class ControlError(Exception):
    """The other side of the control socket does not keep to the protocol, or did not answer in time."""


class ControlClosed(ControlError):
    """The other side closed the control socket."""


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors; one that is already closed is passed over."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def listen(path: str) -> socket.socket:
    """A listening control socket at `path`, mode 0600. A stale file is replaced: the caller holds the lock."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        previous = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(previous)
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that made the other end, as the kernel noted them (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


def send(connection: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Sends one message; `fds` are duplicated by the kernel and stay the caller's.

    Raises ControlError if the message is too large or the socket's timeout passes, ControlClosed if nobody reads.
    """
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    if len(fds) >= DESCRIPTORS_MAX:
        raise ControlError(f"control message with {len(fds)} descriptors; at most {DESCRIPTORS_MAX - 1} fit")
    if len(body) > MESSAGE_MAX:
        raise ControlError(f"control message of {len(body)} bytes; at most {MESSAGE_MAX} are taken")
    memfd = -1
    try:
        descriptors = list(fds)
        if len(body) > INLINE_MAX:
            memfd = _sealed_memfd(body)
            descriptors.insert(0, memfd)
            body = json.dumps({_MEMFD_KEY: len(body)}).encode()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        connection.sendmsg([body], ancillary)
    except TimeoutError as error:
        raise ControlError("the control socket's other end does not read") from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ControlClosed("the control socket's other end is gone") from error
    except OSError as error:
        raise ControlError(f"cannot send on the control socket: {error.strerror}") from error
    finally:
        if memfd >= 0:
            os.close(memfd)


def receive(connection: socket.socket) -> tuple[Message, list[int]]:
    """The next message and its descriptors (close-on-exec, the caller's to close), within the socket's timeout.

    Raises ControlClosed at the end of the stream, ControlError for a timeout or anything that is not the protocol; no
    descriptor stays open then.
    """
    try:
        # Not socket.recv_fds: it drops its flags on Python 3.11, and with them close-on-exec.
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        body, ancillary, flags, _address = connection.recvmsg(INLINE_MAX + 1, room, socket.MSG_CMSG_CLOEXEC)
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
        message = _decode(body)
        if _MEMFD_KEY in message:
            message = _decode(_read_memfd(message[_MEMFD_KEY], fds))
    except BaseException:
        close_all(fds)
        raise
    return message, fds


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def _sealed_memfd(body: bytes) -> int:
    fd = os.memfd_create("nodeseal-control", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_memfd(size: object, fds: list[int]) -> bytes:
    if not isinstance(size, int) or not 0 < size <= MESSAGE_MAX or not fds:
        raise ControlError("a control message announces a body that it does not carry")
    fd = fds.pop(0)
    try:
        chunks = []
        offset = 0
        while offset < size:
            chunk = os.pread(fd, size - offset, offset)
            if not chunk:
                raise ControlError("a control message's body is shorter than announced")
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def _decode(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise ControlError("a control message is not JSON") from error
    if not isinstance(message, dict):
        raise ControlError("a control message is not a JSON object")
    return message
