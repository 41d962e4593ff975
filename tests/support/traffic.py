"""A program for a pod: many connections at once that carry numbered, checksummed messages both ways.

`PodTraffic` (support/pod_traffic.py) starts and asks it. It listens, dials, or does both, all in one event loop: a
thousand connections with a message a second each way take a tenth of a CPU.

Operations:
* listen(port, host) -> the port: whoever connects there gets as many messages as it asks for
* open(group, address, count, ...) dials; what a group's connections do is in `Group` (support/traffic_connection.py)
* finish(group): every connection sends a last message and ends when the other side's has come
* counts() -> {"groups": {group: {...}}, "served": {...}}, see `Counts`
* incidents(since) -> the incidents from number `since` on: {"at", "what", "side", "group", "connection", "local",
  "remote", "began", "detail"}; `at` and `began` are of CLOCK_MONOTONIC, `what` is one of
    failed  it ended before the first message of the other side had come
    cut     it ended later, before the last message of either side
    wrong   a byte was lost, repeated, reordered or changed
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import resource
import socket
import time
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from support.connection import endpoint, family_of
from support.control import ControlServer
from support.messages import Sender
from support.traffic_connection import Connection, Counts, Group

_REDIAL_SECONDS = 0.5


class Traffic:
    """The program, to be made in a running event loop."""

    def __init__(self, control: Path, host: str) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections: set[Connection] = set()
        self._groups: dict[str, tuple[Group, Counts]] = {}
        self._served = Counts()
        self._incidents: list[dict[str, Any]] = []
        self._numbers = itertools.count(random.SystemRandom().getrandbits(48) << 12)
        operations = (self.listen, self.open, self.finish, self.counts, self.incidents)
        self._control = ControlServer(control, {operation.__name__: operation for operation in operations})
        self._loop.add_reader(self._control, self._control.handle)

    def listen(self, port: int = 0, host: str = "") -> int:
        host = host or self._host
        listener = socket.create_server((host, port), family=family_of(host), backlog=4096)
        self._start(self._loop.create_server(self._accepted, sock=listener, backlog=4096))
        return int(listener.getsockname()[1])

    def open(self, group: str, address: list[Any], count: int, marker: str, **options: Any) -> None:
        what = Group(group, (str(address[0]), int(address[1])), bytes.fromhex(marker), **options)
        _, counts = self._groups.get(group, (what, Counts()))
        self._groups[group] = (what, counts)
        for number in range(count):
            self._loop.call_later(what.over_ms / 1000 * number / count, self._dial, what, counts)

    def finish(self, group: str) -> None:
        self._groups[group][0].finishing = True
        for connection in list(self._connections):
            if connection.group is not None and connection.group.name == group:
                connection.group.finishing = True
                connection.finish()

    def counts(self) -> dict[str, Any]:
        now = time.monotonic()
        for counts in (self._served, *(counts for _, counts in self._groups.values())):
            heard = (connection.heard for connection in self._connections if connection.counts is counts)
            counts.quietest_ms = int((now - min(heard, default=now)) * 1000)
        return {
            "groups": {name: asdict(counts) for name, (_, counts) in self._groups.items()},
            "served": asdict(self._served),
        }

    def incidents(self, since: int = 0) -> list[dict[str, Any]]:
        return self._incidents[since:]

    def _accepted(self) -> Connection:
        connection = Connection(self._served, self._ended)
        self._connections.add(connection)
        return connection

    def _dial(self, group: Group, counts: Counts) -> None:
        if not group.finishing:
            sender = Sender(group.marker, next(self._numbers), group.reply_ms)
            connection = Connection(counts, self._ended, group, sender)
            self._connections.add(connection)
            self._start(self._connect(connection, group))

    async def _connect(self, connection: Connection, group: Group) -> None:
        dialled = socket.socket(family_of(group.address[0]), socket.SOCK_STREAM)
        dialled.setblocking(False)
        if group.read_rate:
            # Otherwise the kernel reads ahead by megabytes.
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        try:
            status = dialled.connect_ex(group.address)
            # Known from here on, also of one that fails.
            connection.local, connection.remote = endpoint(dialled.getsockname()), endpoint(group.address)
            if status not in (0, errno.EINPROGRESS):
                raise OSError(status, "")
            await self._loop.sock_connect(dialled, group.address)
            await self._loop.create_connection(lambda: connection, sock=dialled)
        except OSError as error:
            dialled.close()
            connection.fail(f"connect: {errno.errorcode.get(error.errno or 0, error.errno)}")

    def _ended(self, connection: Connection, what: tuple[str, str] | None) -> None:
        self._connections.remove(connection)
        if what is None:
            return
        group = connection.group
        self._incidents.append(
            {
                "at": time.monotonic(),
                "what": what[0],
                "side": "server" if group is None else "client",
                "group": None if group is None else group.name,
                "connection": connection.number,
                "local": connection.local,
                "remote": connection.remote,
                "began": connection.began,
                "detail": what[1],
            }
        )
        if group is not None and group.redial:
            self._loop.call_later(_REDIAL_SECONDS, self._dial, group, connection.counts)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def main(control: str, host: str) -> None:
    """Runs until it is ended. `control`: the path of its control socket (support/control.py); `host`: the address where
    it listens."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def run() -> None:
        traffic = Traffic(Path(control), host)
        await asyncio.Event().wait()
        del traffic

    asyncio.run(run())
