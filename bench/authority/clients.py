"""Nodes that start: each asks on one connection of its own for a certificate after the other, all nodes at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from bench.authority.fleet import Node
from nodeseal.contracts.authority import ServiceRefusal, decode

_TRIES = 50
_PAUSE_S = 0.2


@dataclass
class Outcome:
    """Of some nodes. Times are on time.monotonic(), which all processes share."""

    certificates: int = 0
    connections: int = 0
    first: float = float("inf")
    last: float = 0.0
    """When the last certificate arrived."""
    waits: list[float] = field(default_factory=list)
    """Of each certificate: the seconds from its request to its arrival."""
    refused: Counter[str] = field(default_factory=Counter)
    """Answers that were none, by their word; what was tried again is counted each time."""
    cpu: float = 0.0
    """Seconds that these clients took."""


def run(nodes: list[Node], port: int, ready: Connection) -> None:
    """In a process of its own: says that it is ready, begins when it is told to, and sends the outcome."""
    ready.send(None)
    ready.recv()
    before = time.process_time()
    outcome = asyncio.run(_run(nodes, port))
    outcome.cpu = time.process_time() - before
    ready.send(outcome)


async def _run(nodes: list[Node], port: int) -> Outcome:
    outcome = Outcome(first=time.monotonic())
    await asyncio.gather(*(_start(node, port, outcome) for node in nodes))
    return outcome


async def _start(node: Node, port: int, outcome: Outcome) -> None:
    left = list(reversed(node.requests))
    for _ in range(_TRIES):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=node.context)
            outcome.connections += 1
            try:
                while left:
                    pause = await ask(reader, writer, left[-1], outcome)
                    if pause is None:
                        left.pop()
                    else:
                        await asyncio.sleep(pause)
                return
            finally:
                writer.close()
        await asyncio.sleep(_PAUSE_S)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, outcome: Outcome
) -> float | None:
    """None when the certificate came; else after how many seconds to try again."""
    begin = time.monotonic()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    if head.startswith(b"HTTP/1.1 200 "):
        outcome.certificates += 1
        outcome.last = time.monotonic()
        outcome.waits.append(outcome.last - begin)
        return None
    refusal = decode(body, ServiceRefusal)
    outcome.refused[refusal.word] += 1
    return refusal.retry_after_seconds or _PAUSE_S
