"""A stand-in for the splice core in capture tests: relays in plaintext, one thread a direction.

What it does is what the core's sockets do: outbound, the accepted socket's own address is where the application wanted
to go, and it dials there with mark CORE; inbound, it dials the application from the client's own address with mark
TO_APP.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nodeseal.capture import constants
from nodeseal.linux import socket_options

_ports = itertools.count(1024 + os.getpid() % 8192)  # a run does not meet its predecessor's TIME_WAIT
IPV6_TRANSPARENT = 75  # linux/in6.h
Run = Callable[[Callable[[], socket.socket]], socket.socket]


@dataclass(frozen=True)
class Flow:
    """One relayed connection, as the relay saw it."""

    role: int  # 0 outbound, 1 inbound; addresses are IPv4 where the connection is, whatever the listener is
    source: tuple[str, int]
    destination: tuple[str, int]


class Relay:
    """Accepts on duplicates of the listeners until close()."""

    def __init__(self, run: Run, listeners: Mapping[int, int]) -> None:
        """`run`: calls a function inside the workload's namespace."""
        self.flows: list[Flow] = []
        self._run = run
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listeners = {role: socket.socket(fileno=_duplicate(fd)) for role, fd in listeners.items() if role < 2}
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._threads = [
            threading.Thread(target=self._accept, args=(role, listener), daemon=True)
            for role, listener in self._listeners.items()
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self, role: int) -> int:
        """The descriptor of a listener that the relay holds."""
        return self._listeners[role].fileno()

    def close(self) -> None:
        """Stop accepting and reset what is relayed, as when the core dies."""
        self._stop_writer.close()
        for thread in self._threads:
            thread.join()
        for listener in self._listeners.values():
            listener.close()
        with self._lock:
            for item in list(self._open):
                with contextlib.suppress(OSError):
                    item.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    item.shutdown(socket.SHUT_RD)
        self._stop_reader.close()

    def _accept(self, role: int, listener: socket.socket) -> None:
        while True:
            ready, _, _ = select.select([listener, self._stop_reader], [], [])
            if self._stop_reader in ready:
                return
            try:
                accepted, source = listener.accept()
            except BlockingIOError:
                continue
            accepted.setblocking(True)
            flow = Flow(role, _plain(source), _plain(accepted.getsockname()))
            self.flows.append(flow)
            threading.Thread(target=self._serve, args=(flow, accepted), daemon=True).start()

    def _serve(self, flow: Flow, accepted: socket.socket) -> None:
        with self._lock:
            self._open.add(accepted)
        try:
            onward = self._run(lambda: _dial(flow))
        except OSError:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._forget(accepted)
            return
        with self._lock:
            self._open.add(onward)
        back = threading.Thread(target=_copy, args=(onward, accepted), daemon=True)
        back.start()
        _copy(accepted, onward)
        back.join()
        self._forget(accepted)
        self._forget(onward)

    def _forget(self, item: socket.socket) -> None:
        with self._lock:
            self._open.discard(item)
        item.close()


def _plain(address: tuple[str, int]) -> tuple[str, int]:
    return address[0].removeprefix("::ffff:"), address[1]


def _duplicate(fd: int) -> int:
    return os.dup(fd)


def _dial(flow: Flow) -> socket.socket:
    for attempt in range(20):
        ipv6 = ":" in flow.destination[0]
        onward = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        onward.settimeout(10)
        try:
            if flow.role == 0:
                onward.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, constants.MARK_CORE)
            else:
                onward.setsockopt(socket.SOL_SOCKET, socket_options.SO_MARK, constants.MARK_TO_APP)
                if ipv6:
                    onward.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
                else:
                    onward.setsockopt(socket.SOL_IP, socket_options.IP_TRANSPARENT, 1)
                # Below the ephemeral range, so that it is never the port of a connection from that client.
                onward.bind((flow.source[0], next(_ports)))
            onward.connect(flow.destination)
        except OSError as error:
            onward.close()
            if flow.role == 1 and error.errno in (98, 99) and attempt < 19:  # EADDRINUSE, EADDRNOTAVAIL
                continue
            raise
        onward.settimeout(None)
        return onward
    raise AssertionError


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for item in (source, target):
            with contextlib.suppress(OSError):
                item.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                item.shutdown(socket.SHUT_RDWR)
