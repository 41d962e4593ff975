"""The programs of one test inside the pods of a lab: sockets, servers, sniffers, threads. All end with the test.

    with running_lab(tmp_path, more_pods=("web:node2:plain",)) as lab, Programs(lab) as programs:
        server = programs.serve("pipeline", echo)
        with programs.sniff("node1") as wire:
            client = programs.dial("shipper", server.address)
            client.sendall(b"hello")
            ...
            assert not wire.carries(b"hello")
        row = lab.outbound(client)

They are threads of the test itself: a socket belongs for life to the network namespace that it was made in, so only
socket() is called inside the pod's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nodeseal_lab.topology import UPLINK
from support.connection import Address, echo, echoes, family_of, receive_exactly
from support.lab import RunningLab
from support.patience import PATIENCE, wait_for
from support.server import Handler, Server
from support.sniffer import Sniffer

BOTH_FAMILIES = pytest.mark.parametrize("programs", [4, 6], ids=["ipv4", "ipv6"], indirect=True)
"""For single tests in a lab with IPv6. A module whose tests all run over both says IP_VERSIONS instead."""


class Programs:
    """The sockets, servers and sniffers of one test; all closed at the end."""

    def __init__(self, lab: RunningLab, version: int = 4) -> None:
        """`version`: of the IP over which the pods are to talk; 6 needs a lab that has it."""
        self.lab = lab
        self.version = version
        self._stack = contextlib.ExitStack()
        self._dialled: list[socket.socket] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        # First of all: a thread that is to be waited for may hang on one of these.
        for connection in self._dialled:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._stack.close()

    def at_end(self, action: Callable[[], object]) -> None:
        """Calls this when the test is over, before what was made earlier is closed."""
        self._stack.callback(action)

    def at(self, pod: str) -> str:
        """The pod's address."""
        return self.lab.address(pod, self.version)

    def serve(self, pod: str, handler: Handler = echo, port: int = 0, **options: Any) -> Server:
        """A server in the pod; port 0: a free one, see Server.address. `options` as for Server."""
        host = options.pop("host", self.at(pod))
        server = Server(functools.partial(self.lab.run, pod), handler, host, port, **options)
        self._stack.callback(server.close)
        return server

    def dial(self, pod: str, address: Address, *, timeout: float = PATIENCE) -> socket.socket:
        """A connection from the pod. Raises OSError."""

        def connect() -> socket.socket:
            connection = socket.socket(family_of(address[0]))
            try:
                connection.settimeout(timeout)
                connection.connect(address)
            except BaseException:
                connection.close()
                raise
            return connection

        connection = self.lab.run(pod, connect)
        self._dialled.append(connection)
        self._stack.callback(connection.close)
        return connection

    def begin(self, pod: str, address: Address) -> socket.socket:
        """A connection from the pod that is being made; it does not block."""

        def connect() -> socket.socket:
            connection = socket.socket(family_of(address[0]))
            connection.setblocking(False)
            error = connection.connect_ex(address)
            assert error == errno.EINPROGRESS, os.strerror(error)
            return connection

        connection = self.lab.run(pod, connect)
        self._stack.callback(connection.close)
        return connection

    def sniff(self, node: str = "node1") -> Sniffer:
        """Everything on the wire between this node and the others, from now on."""
        here = self.lab.lab.plan.node(node)
        there = next(other for other in self.lab.lab.plan.nodes if other != here)
        marks = [(here.netns, str(there.address)), (there.netns, str(here.address))]
        return self._sniffer(Sniffer(here.netns, UPLINK, marks))

    def sniff_pod(self, pod: str) -> Sniffer:
        """Everything between the pod and its node, from now on."""
        here = self.lab.lab.plan.pod(pod)
        node = self.lab.lab.plan.node(here.node)
        marks = [(node.netns, str(here.address)), (here.netns, str(node.gateway))]
        return self._sniffer(Sniffer(node.netns, here.link, marks))

    def thread(self, function: Callable[[], object]) -> Worker:
        """Runs the function in a thread; it is waited for at the end of the test."""
        worker = Worker(function)
        self._stack.callback(worker.wait)
        return worker

    def _sniffer(self, sniffer: Sniffer) -> Sniffer:
        self._stack.callback(sniffer.close)
        return sniffer


class Worker:
    """A thread whose exception is not lost: result() raises it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._value: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the function has not returned yet."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Waits for the end, whichever it is."""
        self._thread.join(PATIENCE)

    def result(self) -> Any:
        """What the function returned. Raises what it raised; fails the test when it does not end."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            pytest.fail("a program of the test does not end")
        if self._error is not None:
            raise self._error
        return self._value

    def _body(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error


class Dials:
    """Connections from a pod to an echo server, one after the other, until told to stop: each is dialled, answered and
    closed."""

    def __init__(self, programs: Programs, pod: str, address: Address) -> None:
        self._programs, self._pod, self._address = programs, pod, address
        self._stop = threading.Event()
        self._worker = programs.thread(self._run)
        programs.at_end(self._stop.set)

    @property
    def running(self) -> bool:
        """False once one has failed; `finish` raises why."""
        return self._worker.running

    def finish(self) -> int:
        """Stops, and returns how many there were. Raises what went wrong."""
        self._stop.set()
        count: int = self._worker.result()
        return count

    def _run(self) -> int:
        count = 0
        while not self._stop.is_set():
            client = self._programs.dial(self._pod, self._address)
            assert echoes(client, b"%08d" % count)
            client.close()
            count += 1
        return count


class Lines:
    """Numbered lines to an echo server and back, one after the other, until told to stop. Each answer is checked: a
    byte lost, doubled or out of order ends it with an error."""

    def __init__(self, programs: Programs, pod: str, address: Address) -> None:
        self.connection = programs.dial(pod, address)
        self.count = 0
        self._stop = threading.Event()
        self._worker = programs.thread(self._run)
        programs.at_end(self._stop.set)

    def goes_on(self) -> None:
        """Waits for some more lines. Fails the test when there are none."""
        wanted = self.count + 20
        wait_for(lambda: self.count >= wanted or not self._worker.running, "lines go on")
        if not self._worker.running:
            self._worker.result()

    def finish(self) -> int:
        """Stops, and returns how many lines there were. Raises what went wrong."""
        self._stop.set()
        self._worker.result()
        return self.count

    def _run(self) -> None:
        # The pause only leaves the processors to others.
        while not self._stop.wait(0.001):
            line = b"line %09d %s\n" % (self.count, b"x" * (self.count % 997))
            self.connection.sendall(line)
            answer = receive_exactly(self.connection, len(line))
            assert answer == line
            self.count += 1
