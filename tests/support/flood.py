"""A stream of numbered datagrams out of a namespace, to see whether something makes it lose any."""

from __future__ import annotations

import contextlib
import socket
import threading

from support.namespaces import Namespace

_PATIENCE = 0.02  # seconds until the next datagram is sent although the last one did not arrive
_LAST_ONES = 1.0  # seconds for those that are still under way at the end


class Flood:
    """Sends as fast as the other side receives: never more than one datagram is under way, so that no queue overflows.

    After the `with` block `sent` and `lost` say how many there were; one that comes late is not lost.
    """

    def __init__(self, sender: Namespace, receiver: Namespace, address: str, port: int = 9999) -> None:
        self.sent = 0
        self._arrived: set[int] = set()
        self._receiver = receiver.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._receiver.bind((address, port))
        self._sender = sender.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._sender.connect((address, port))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def lost(self) -> int:
        """How many did not arrive."""
        return self.sent - len(self._arrived)

    def _run(self) -> None:
        self._receiver.settimeout(_PATIENCE)
        while not self._end.is_set():
            self._sender.send(self.sent.to_bytes(8, "big"))
            self.sent += 1
            self._receive()
        self._receiver.settimeout(_LAST_ONES)
        while self.lost and self._receive():
            pass

    def _receive(self) -> bool:
        with contextlib.suppress(TimeoutError):
            self._arrived.add(int.from_bytes(self._receiver.recv(64), "big"))
            return True
        return False

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._sender.close()
        self._receiver.close()
