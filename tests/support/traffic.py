"""A program for a pod: many connections at once that carry numbered, checksummed messages both ways.

`PodTraffic` (support/pod_traffic.py) starts and asks it. It listens, dials, or does both, all in
one thread around one epoll: a thousand connections with a message a second each way take a tenth of a CPU.

Operations:
* listen(port, host) -> the port: whoever connects there gets as many messages as it asks for
* open(group, address, count, ...) dials; what a group's connections do is in `Group`
* finish(group): every connection sends a last message and ends when the other side's has come
* counts() -> {"groups": {group: {...}}, "served": {...}}, see `Counts`
* incidents(since) -> the incidents from number `since` on: {"at", "what", "side", "group", "connection", "local",
  "remote", "began", "detail"}; `at` and `began` are of CLOCK_MONOTONIC, `what` is one of
    failed  it ended before the first message of the other side had come
    cut     it ended later, before the last message of either side
    wrong   a byte was lost, repeated, reordered or changed
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
import resource
import select
import socket
import time
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from support.control import ControlServer
from support.messages import LAST, BrokenStreamError, Receiver, Sender

FLOOD_SIZE = 4096
_FLOOD_STEP = 0.02
_FLOOD_TURN = 32
_READ_STEP = 0.05
_RECEIVE = 1 << 16
_REDIAL_SECONDS = 0.5
_ACCEPTS = 64


@dataclass(slots=True)
class Group:
    """What the connections of a group do.

    `interval_ms`, `reply_ms`: how often this and the other side send, about; 0: as much as the connection takes.
    `messages`: it finishes by itself after so many of its own; 0: when told. `read_rate`: bytes a second that it
    reads; 0: all there is. `redial`: one that is cut or fails is dialled again. `over_ms`: the dialling is spread over
    this."""

    name: str
    address: tuple[str, int]
    marker: bytes
    interval_ms: int = 1000
    reply_ms: int = 1000
    size: int = 200
    messages: int = 0
    read_rate: int = 0
    redial: bool = False
    over_ms: int = 0
    finishing: bool = False


@dataclass(slots=True)
class Counts:
    """Of a group, or of all that was served: opened = answered + failed + those that wait, and
    answered = closed + cut + wrong + open.

    `sent` and `received` are messages, `slowest_ms` the longest time from connect() to the first message."""

    opened: int = 0
    answered: int = 0
    closed: int = 0
    failed: int = 0
    cut: int = 0
    wrong: int = 0
    open: int = 0
    sent: int = 0
    received: int = 0
    bytes: int = 0
    slowest_ms: int = 0
    quietest_ms: int = 0
    """For how long the connection that heard nothing for the longest has heard nothing."""


class State(IntEnum):
    """In the order in which a connection passes through them."""

    CONNECTING = 0
    OPEN = 1
    LAST_SENT = 2  # the last message is in the socket or in `pending`
    SHUT = 3  # this direction has ended
    CLOSED = 4


@dataclass(slots=True, eq=False)
class Connection:
    """One connection, either side; `group` is None for one that was accepted."""

    socket: socket.socket
    group: Group | None
    counts: Counts
    sender: Sender | None
    began: float
    receiver: Receiver = field(default_factory=Receiver)
    state: State = State.CONNECTING
    pending: bytearray = field(default_factory=bytearray)
    interval: float = 1.0  # 0: without a pause
    size: int = 200
    heard: float = 0.0
    events: int = 0  # what epoll watches
    read_step: int = 0  # bytes that may be read in each step of a slow reader; 0: it is not slow
    local: str = ""
    remote: str = ""


class Traffic:
    """The program."""

    def __init__(self, control: Path, host: str) -> None:
        self._host = host
        self._poll = select.epoll()
        self._timers: list[tuple[float, int, Any]] = []
        self._order = itertools.count()
        self._connections: dict[int, Connection] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._groups: dict[str, tuple[Group, Counts]] = {}
        self._served = Counts()
        self._incidents: list[dict[str, Any]] = []
        self._numbers = itertools.count(random.SystemRandom().getrandbits(48) << 12)
        self._control = ControlServer(
            control,
            self._poll,
            {
                "listen": self.listen,
                "open": self.open,
                "finish": self.finish,
                "counts": self.counts,
                "incidents": self.incidents,
            },
        )

    # ---- operations

    def listen(self, port: int = 0, host: str = "") -> int:
        host = host or self._host
        listener = socket.create_server((host, port), family=_family(host), backlog=4096)
        listener.setblocking(False)
        self._listeners[listener.fileno()] = listener
        self._poll.register(listener, select.EPOLLIN)
        return int(listener.getsockname()[1])

    def open(self, group: str, address: list[Any], count: int, marker: str, **options: Any) -> None:
        what = Group(group, (str(address[0]), int(address[1])), bytes.fromhex(marker), **options)
        _, counts = self._groups.setdefault(group, (what, Counts()))
        self._groups[group] = (what, counts)
        now = time.monotonic()
        for number in range(count):
            self._at(now + what.over_ms / 1000 * number / count, self._dial, what, counts)

    def finish(self, group: str) -> None:
        what, _ = self._groups[group]
        what.finishing = True
        for connection in list(self._connections.values()):
            if connection.group is not None and connection.group.name == group:
                connection.group.finishing = True
                self._finish(connection)

    def counts(self) -> dict[str, Any]:
        now = time.monotonic()
        quiet: dict[int, float] = {}
        for connection in self._connections.values():
            heard = connection.heard or connection.began
            quiet[id(connection.counts)] = min(heard, quiet.get(id(connection.counts), now))
        for counts in (self._served, *(counts for _, counts in self._groups.values())):
            counts.quietest_ms = int((now - quiet.get(id(counts), now)) * 1000)
        return {
            "groups": {name: asdict(counts) for name, (_, counts) in self._groups.items()},
            "served": asdict(self._served),
        }

    def incidents(self, since: int = 0) -> list[dict[str, Any]]:
        return self._incidents[since:]

    # ---- the loop

    def run(self) -> None:
        """For ever."""
        while True:
            wait = None
            if self._timers:
                wait = max(self._timers[0][0] - time.monotonic(), 0)
            for fd, events in self._poll.poll(-1 if wait is None else wait + 0.001):
                if fd in self._connections:
                    self._ready(self._connections[fd], events)
                elif fd in self._listeners:
                    self._accept(self._listeners[fd])
                else:
                    self._control.handle(fd)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _, _, (function, *arguments) = heapq.heappop(self._timers)
                function(*arguments)

    def _at(self, when: float, *call: Any) -> None:
        heapq.heappush(self._timers, (when, next(self._order), call))

    # ---- connections that begin

    def _dial(self, group: Group, counts: Counts) -> None:
        if group.finishing:
            return
        counts.opened += 1
        number = next(self._numbers)
        dialled = socket.socket(_family(group.address[0]), socket.SOCK_STREAM)
        dialled.setblocking(False)
        if group.read_rate:
            # Otherwise the kernel reads ahead by megabytes.
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection = Connection(
            dialled, group, counts, Sender(group.marker, number, group.reply_ms), time.monotonic(), size=group.size
        )
        connection.interval = group.interval_ms / 1000
        connection.read_step = max(int(group.read_rate * _READ_STEP), 1) if group.read_rate else 0
        status = dialled.connect_ex(group.address)
        connection.local, connection.remote = _endpoint(dialled.getsockname()), _endpoint(group.address)
        self._adopt(connection, select.EPOLLOUT)
        if status not in (0, errno.EINPROGRESS):
            self._end(connection, f"connect: {errno.errorcode.get(status, status)}")

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                accepted, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                print(f"accept: {error}", flush=True)
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._served.opened += 1
            connection = Connection(accepted, None, self._served, None, time.monotonic(), state=State.OPEN)
            connection.local, connection.remote = _endpoint(accepted.getsockname()), _endpoint(peer)
            self._adopt(connection, select.EPOLLIN)

    def _adopt(self, connection: Connection, events: int) -> None:
        connection.events = events
        self._connections[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, events)

    def _connected(self, connection: Connection) -> None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.state = State.OPEN
        self._watch(connection, select.EPOLLIN)
        self._send_next(connection)
        if connection.read_step:
            self._watch(connection, 0)
            self._at(time.monotonic() + _READ_STEP, self._slow_read, connection)

    # ---- what a connection does

    def _ready(self, connection: Connection, events: int) -> None:
        state = connection.state
        if state == State.CONNECTING:
            if status := connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end(connection, f"connect: {errno.errorcode.get(status, status)}")
                return
            self._connected(connection)
        if events & select.EPOLLOUT and connection.state != State.CLOSED and connection.pending:
            self._flush(connection)
        if connection.state != State.CLOSED and (events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR)):
            if connection.read_step and not events & (select.EPOLLHUP | select.EPOLLERR):
                return
            self._read(connection, connection.read_step or _RECEIVE)

    def _slow_read(self, connection: Connection) -> None:
        if connection.state == State.CLOSED:
            return
        self._read(connection, connection.read_step or _RECEIVE)
        if connection.state != State.CLOSED and connection.read_step:
            self._at(time.monotonic() + _READ_STEP, self._slow_read, connection)

    def _read(self, connection: Connection, most: int) -> None:
        try:
            data = connection.socket.recv(most)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(connection, str(error.strerror))
            return
        receiver, counts = connection.receiver, connection.counts
        if not data:
            self._heard_the_end(connection)
            return
        before = receiver.received
        try:
            messages = receiver.feed(data)
        except BrokenStreamError as error:
            counts.wrong += 1
            self._note(connection, "wrong", str(error))
            self._end(connection, "")
            return
        finally:
            counts.received += receiver.received - before
            counts.bytes += len(data)
        if not messages:
            return
        connection.heard = time.monotonic()
        if before == 0:
            counts.answered += 1
            counts.open += 1
            counts.slowest_ms = max(counts.slowest_ms, int((connection.heard - connection.began) * 1000))
            if connection.sender is None:
                first = messages[0]
                connection.sender = Sender(first.marker, first.connection, 0)
                connection.interval = first.reply_ms / 1000
                connection.size = first.size if first.reply_ms else FLOOD_SIZE
                self._send_next(connection)
        if receiver.ended and connection.group is None:
            self._finish(connection)

    def _heard_the_end(self, connection: Connection) -> None:
        if not connection.receiver.end():
            self._end(connection, "the other side ended it")
        elif connection.state == State.SHUT:
            self._end(connection, None)
        else:
            # What is still to be sent goes first.
            self._watch(connection, select.EPOLLOUT if connection.pending else 0)
            self._finish(connection)

    def _send_next(self, connection: Connection) -> None:
        """Sends a message if the one before has gone, and comes again when the next is due."""
        if connection.state != State.OPEN or connection.sender is None:
            return
        if connection.group is not None and connection.group.finishing:
            self._finish(connection)
            return
        if not connection.pending:
            connection.pending += connection.sender.message(connection.size)
            connection.counts.sent += 1
            self._flush(connection)
            group = connection.group
            if group is not None and group.messages and connection.sender.sent >= group.messages:
                self._finish(connection)
                return
        if connection.state == State.OPEN:
            # Not all at the same moment, however they began.
            pause = connection.interval * random.uniform(0.75, 1.25) or _FLOOD_STEP  # noqa: S311
            self._at(time.monotonic() + pause, self._send_next, connection)

    def _flush(self, connection: Connection) -> None:
        # Of a flood some messages at a time: the others wait for their turn, and so does what comes the other way.
        more = _FLOOD_TURN if connection.interval == 0 and connection.state == State.OPEN else 0
        try:
            while connection.pending:
                del connection.pending[: connection.socket.send(connection.pending)]
                if more and not connection.pending and connection.sender is not None:
                    more -= 1
                    connection.pending += connection.sender.message(connection.size)
                    connection.counts.sent += 1
        except BlockingIOError:
            self._watch(connection, connection.events | select.EPOLLOUT)
            return
        except OSError as error:
            self._end(connection, str(error.strerror))
            return
        if connection.events & select.EPOLLOUT:
            self._watch(connection, connection.events & ~select.EPOLLOUT)
        if connection.state == State.LAST_SENT:
            self._shut(connection)

    def _finish(self, connection: Connection) -> None:
        if connection.read_step:
            connection.read_step = 0
            self._watch(connection, connection.events | select.EPOLLIN)
        if connection.state != State.OPEN or connection.sender is None:
            return
        connection.state = State.LAST_SENT
        connection.pending += connection.sender.message(0, LAST)
        connection.counts.sent += 1
        self._flush(connection)

    def _shut(self, connection: Connection) -> None:
        connection.state = State.SHUT
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(connection, str(error.strerror))
            return
        if connection.receiver.ended and not connection.events & select.EPOLLIN:
            # The other side's end was read already.
            self._end(connection, None)

    # ---- connections that end

    def _end(self, connection: Connection, why: str | None) -> None:
        """`why` None: as it should be; "": noted already."""
        if connection.state == State.CLOSED:
            return
        counts = connection.counts
        answered = connection.receiver.received > 0
        if why is None:
            counts.closed += answered
        elif not why:
            pass
        elif connection.receiver.ended and connection.state == State.SHUT:
            # Everything was there both ways; how the very end looks is the kernels' affair.
            counts.closed += 1
            why = None
        elif answered:
            counts.cut += 1
            self._note(connection, "cut", why)
        elif connection.group is not None:
            counts.failed += 1
            self._note(connection, "failed", why)
        counts.open -= answered
        connection.state = State.CLOSED
        fd = connection.socket.fileno()
        self._poll.unregister(fd)
        del self._connections[fd]
        connection.socket.close()
        group = connection.group
        if why is not None and group is not None and group.redial:
            self._at(time.monotonic() + _REDIAL_SECONDS, self._dial, group, counts)

    def _note(self, connection: Connection, what: str, detail: str) -> None:
        number = connection.receiver.connection
        if number is None and connection.sender is not None:
            number = connection.sender.connection
        self._incidents.append(
            {
                "at": time.monotonic(),
                "what": what,
                "side": "server" if connection.group is None else "client",
                "group": None if connection.group is None else connection.group.name,
                "connection": number,
                "local": connection.local,
                "remote": connection.remote,
                "began": connection.began,
                "detail": detail,
            }
        )

    def _watch(self, connection: Connection, events: int) -> None:
        if events != connection.events:
            connection.events = events
            self._poll.modify(connection.socket, events)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _endpoint(name: tuple[Any, ...]) -> str:
    """As the agents write it: "10.0.0.1:80", "[fd00::1]:80"."""
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def main(control: str, host: str) -> None:
    """Runs until it is ended. `control`: the path of its control socket (support/control.py); `host`: the address where
    it listens."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Traffic(Path(control), host).run()
