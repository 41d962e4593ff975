"""One end of a control socket on the event loop: no call waits but by `await`, and no thread is needed.

How it works: the socket does not block. What cannot go on registers the socket with the loop, and only for as long as
it waits. A message is taken from the socket behind the last `await` of receive(): one that is cancelled has taken
nothing, so that no descriptor is lost. How long to wait is the caller's to say (asyncio.timeout).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from nodeseal.linux import control_socket
from nodeseal.linux.control_socket import ControlClosed

_CONNECT_AGAIN_S = 0.02


class ControlChannel:
    """`connection` is the channel's from here on. One task at a time may send, and one receive."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._waiting: set[asyncio.Future[None]] = set()
        self.pid = control_socket.peer_credentials(connection)[0]
        """Of the process that made the other end."""

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """To the control socket at `path`, once its queue has room. Raises FileNotFoundError and
        ConnectionRefusedError when nobody serves it, OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            while True:
                try:
                    connection.connect(str(path))
                    return cls(connection)
                except BlockingIOError:
                    # No event tells when there is room (connect(2), EAGAIN).
                    await asyncio.sleep(_CONNECT_AGAIN_S)
        except BaseException:
            connection.close()
            raise

    async def send(self, body: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one message; `fds` stay the caller's. Raises ControlError, ControlClosed."""
        loop = asyncio.get_running_loop()
        with control_socket.packed(body, fds) as message:
            while True:
                with contextlib.suppress(BlockingIOError):
                    control_socket.send(self._connection, message)
                    return
                await self._ready(loop.add_writer, loop.remove_writer)

    async def receive(self) -> tuple[bytes, list[int]]:
        """The next message's body and descriptors, which are the caller's to close. Raises ControlError,
        ControlClosed. Nothing else runs meanwhile if there is one already.

        Await it where its result is taken: one that is lost in a task leaks the descriptors."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(BlockingIOError):
                return control_socket.receive(self._connection)
            await self._ready(loop.add_reader, loop.remove_reader)

    def close(self) -> None:
        """Ends the connection; whoever waits for it gets ControlClosed."""
        for waiting in list(self._waiting):
            if not waiting.done():
                waiting.set_exception(ControlClosed("the control socket was closed"))
        self._unregister()
        self._connection.close()

    def _unregister(self) -> None:
        with contextlib.suppress(RuntimeError):  # without a loop nothing is registered
            loop = asyncio.get_running_loop()
            if self._connection.fileno() >= 0:
                loop.remove_reader(self._connection)
                loop.remove_writer(self._connection)

    async def _ready(self, add: Callable[..., Any], remove: Callable[[socket.socket], bool]) -> None:
        if self._connection.fileno() < 0:
            raise ControlClosed("the control socket was closed")
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(ready)
        add(self._connection, _set, ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._connection.fileno() >= 0:
                remove(self._connection)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
