"""How a test talks to a program that it runs inside a lab: one JSON object a line each way, over a Unix socket.

The socket is a file, so that it does not matter in which network namespace the program is. `ControlServer` is the
program's side, driven by the program's own event loop; `Remote` is the test's.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REQUEST_SECONDS = 60.0

Operation = Callable[..., Any]


class RemoteError(Exception):
    """The program refused a request, or is gone."""


class ControlServer:
    """Answers requests with `operations` by name; their keyword arguments are the rest of the request.

    Its descriptor is readable, for select and epoll alike, whenever `handle` has something to do."""

    def __init__(self, path: Path, operations: Mapping[str, Operation]) -> None:
        self._operations = operations
        self._poll = select.epoll()
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._poll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    def handle(self) -> None:
        """Does what clients ask for now."""
        for fd, _ in self._poll.poll(0):
            if fd == self._listener.fileno():
                client, _ = self._listener.accept()
                self._clients[client.fileno()] = (client, bytearray())
                self._poll.register(client, select.EPOLLIN)
            else:
                self._serve(fd)

    def _serve(self, fd: int) -> None:
        client, buffer = self._clients[fd]
        try:
            data = client.recv(1 << 16)
            buffer += data
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(fd)
            del self._clients[fd]
            client.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        request: dict[str, Any] = json.loads(line)
        try:
            return {"value": self._operations[request.pop("op")](**request)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


class Remote:
    """The test's side, for any thread. `connect` is to be called until it does not raise OSError: the program needs a
    moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def connect(self) -> None:
        """Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(REQUEST_SECONDS)
            connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        self._socket = connection

    def ask(self, op: str, **arguments: Any) -> Any:
        """What the operation returns. Raises RemoteError."""
        request = json.dumps({"op": op, **arguments}).encode() + b"\n"
        with self._lock:
            answer = json.loads(self._exchange(request))
        if "error" in answer:
            raise RemoteError(f"{self._path}: {op}: {answer['error']}")
        return answer["value"]

    def _exchange(self, request: bytes) -> bytes:
        if self._socket is None:
            raise RemoteError(f"{self._path}: not connected")
        buffer = bytearray()
        try:
            self._socket.sendall(request)
            while not buffer.endswith(b"\n"):
                part = self._socket.recv(1 << 16)
                if not part:
                    raise RemoteError(f"{self._path}: the program has ended")
                buffer += part
        except OSError as error:
            raise RemoteError(f"{self._path}: {error}") from error
        return bytes(buffer)

    def close(self) -> None:
        """Leaves the program alone."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
