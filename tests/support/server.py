"""A TCP server of a test: a thread for each connection, which lives in the namespace that the listener was made in."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from support.connection import Address, family_of
from support.patience import PATIENCE, wait_for

Handler = Callable[[socket.socket], None]
Run = Callable[[Callable[[], socket.socket]], socket.socket]
"""Calls a function inside a network namespace."""


class Server:
    """Accepts in a namespace until close(); `handler` gets each connection in a thread of its own. A handler that
    returns or raises OSError or EOFError leaves the connection open until then: the test decides how it ends."""

    def __init__(
        self,
        run: Run,
        handler: Handler,
        host: str,
        port: int = 0,
        *,
        protocol: int = 0,
        prepare: Callable[[socket.socket], None] | None = None,
    ) -> None:
        """`host`: where it listens, "::" for any address of both families; `prepare` gets the socket before that."""

        def listen() -> socket.socket:
            listener = socket.socket(family_of(host), socket.SOCK_STREAM, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if prepare is not None:
                prepare(listener)
            listener.bind((host, port))
            listener.listen(1024)
            return listener

        self.peers: list[Address] = []
        self.accepted: list[socket.socket] = []
        self._handler = handler
        self._threads: list[threading.Thread] = []
        self._listener = run(listen)
        self.address: Address = self._listener.getsockname()[:2]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def sources(self) -> list[Address]:
        """The peers; one of IPv4 stands as such, also where the listener is of IPv6."""
        return [(host.removeprefix("::ffff:"), port) for host, port in self.peers]

    def connection(self, number: int = 0) -> socket.socket:
        """The connection that was accepted as number `number`, once it is."""
        return wait_for(lambda: self.accepted[number : number + 1], "the server accepts the connection")[0]

    def hang_up(self) -> None:
        """Ends every connection, from this side first."""
        for connection in self.accepted:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the listener and every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE)
        for connection in self.accepted:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            self.peers.append(peer[:2])
            self.accepted.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._handler(connection)
