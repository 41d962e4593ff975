"""Keeps many TCP connections open: sends a numbered line on each now and then and checks that it comes back.

line_clients.py ADDRESS PORT COUNT [SECONDS]

SECONDS: between two lines on a connection, 1 by default. SIGUSR1 begins a round: each connection sends one at once.

Standard output, a line each: "open N LINES" whenever one of these numbers has changed (N connections are open, LINES
have come back on all of them), "cut LOCAL SECONDS REASON" for a connection that has ended by itself (SECONDS: of
CLOCK_MONOTONIC, which is the machine's), "round K" when a line of round K has come back on all of them, and at the end,
after SIGTERM, "closed N SENT RECEIVED LONGEST_MILLISECONDS".
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time

INTERVAL_SECONDS = 1.0
ECHO_TIMEOUT_SECONDS = 10.0
TOLD_SECONDS = 0.1


class Clients:
    """All connections. `interval`: seconds between two lines on one."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.round = 0
        self.behind: set[Client] = set()
        self.open: set[Client] = set()
        self.sent = self.received = 0
        self.longest = 0.0
        self.ending = False
        self.none = asyncio.Event()

    def gone(self, one: Client) -> None:
        """It is open no more."""
        self.open.remove(one)
        self.answered(one)
        if not self.open:
            self.none.set()

    def begin_round(self) -> None:
        """A new line on each, at once."""
        self.round += 1
        self.behind = set(self.open)
        for one in list(self.open):
            one.send_now()

    def answered(self, one: Client) -> None:
        """A line of this round has come back on it, or never will."""
        if one in self.behind:
            self.behind.remove(one)
            if not self.behind:
                say("round", self.round)


class Client(asyncio.Protocol):
    """One connection, with one line on its way at most."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._number = 0
        self._line = b""
        self._reply = b""
        self._began = 0.0
        self._round = 0
        self._next: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._local = endpoint(transport.get_extra_info("sockname"))
        self._clients.open.add(self)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._reply += data
        if not self._reply.endswith(b"\n"):
            return
        if self._reply != self._line:
            self._cut(f"{self._reply!r} came back for {self._line!r}")
            return
        clients = self._clients
        clients.received += 1
        clients.longest = max(clients.longest, time.monotonic() - self._began)
        self._line = self._reply = b""
        late = self._round != clients.round
        if not late:
            clients.answered(self)
        if clients.ending:
            self.close()
        elif late:
            self._send()
        else:
            self._next = asyncio.get_running_loop().call_later(clients.interval, self._send)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cut(str(exc) if exc is not None else "the connection was closed")

    def close(self) -> None:
        """In order, unless a line is on its way: then when that has come back."""
        if self._next is not None:
            self._next.cancel()
        if not self._line and self in self._clients.open:
            self._clients.gone(self)
            self._transport.close()

    def send_now(self) -> None:
        """Unless a line is on its way: then when that has come back."""
        if not self._line:
            if self._next is not None:
                self._next.cancel()
            self._send()

    def _send(self) -> None:
        self._number += 1
        self._round = self._clients.round
        self._line = b"line %d\n" % self._number
        self._began = time.monotonic()
        self._clients.sent += 1
        self._transport.write(self._line)

    def _cut(self, why: str) -> None:
        """It has ended, unless that was the wish."""
        if self in self._clients.open:
            if self._next is not None:
                self._next.cancel()
            self._clients.gone(self)
            say("cut", self._local, f"{time.monotonic():.4f}", why)
            self._transport.abort()


async def main() -> None:
    address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    interval = float(sys.argv[4]) if len(sys.argv) > 4 else INTERVAL_SECONDS
    loop, stop, clients = asyncio.get_running_loop(), asyncio.Event(), Clients(interval)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, clients.begin_round)
    told = (-1, -1)

    def tell() -> None:
        nonlocal told
        if (now := (len(clients.open), clients.received)) != told:
            told = now
            say("open", *now)

    for _ in range(count):
        await asyncio.wait_for(loop.create_connection(lambda: Client(clients), address, port), ECHO_TIMEOUT_SECONDS)
    stopped = asyncio.ensure_future(stop.wait())
    while not stopped.done():
        tell()
        await asyncio.wait([stopped], timeout=TOLD_SECONDS)
    clients.ending = True
    orderly = len(clients.open)
    for client in list(clients.open):
        client.close()
    if clients.open:
        await asyncio.wait([asyncio.ensure_future(clients.none.wait())], timeout=ECHO_TIMEOUT_SECONDS)
    orderly -= len(clients.open)
    say("closed", orderly, clients.sent, clients.received, f"{clients.longest * 1000:.2f}")


def endpoint(name: tuple[str, int]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def say(*words: object) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
