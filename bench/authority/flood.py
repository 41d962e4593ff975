"""A flood of requests that are all refused, and a node among them: `python -m bench.authority.flood`.

Strangers send wrong tokens on connections that stay, many at a time without waiting for answers, up to a rate; others
send bodies that are too large, or stop within a request. One node asks for a certificate every half second. What does
not fit into the service stays in the strangers' own sockets: it is counted as not taken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import resource
import socket
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from bench.authority.clients import Outcome, ask
from bench.authority.fleet import Fleet, make_fleet
from bench.authority.running import cpu_seconds, peak_mb, resident_mb, running_service
from nodeseal.contracts.authority import HEALTH, Health, decode

_BATCH = 50
_BODY = b'{"csr":"x","node":"node0","token":"nodeseal-join-' + b"A" * 43 + b'"}'
_WRONG = b"POST /v1/node HTTP/1.1\r\nHost: ca\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
_LARGE = b"POST /v1/node HTTP/1.1\r\nHost: ca\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000
_HALF = b"POST /v1/node HTTP/1.1\r\nContent-Le"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was found, in JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.authority.flood", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=10_000, help="wrong tokens a second; default: %(default)s")
    parser.add_argument("--connections", type=int, default=64, help="that carry them; default: %(default)s")
    parser.add_argument("--slow", type=int, default=500, help="that stop within a request; default: %(default)s")
    options = parser.parse_args(argv)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="nodeseal-bench-") as directory:
        fleet = make_fleet(Path(directory), 1, max(8, int(options.seconds * 2) + 8))
        with running_service(fleet) as (pid, port):
            print(json.dumps(_measure(fleet, pid, port, options), indent=1))
    return 0


def _measure(fleet: Fleet, pid: int, port: int, options: argparse.Namespace) -> dict[str, Any]:
    end = multiprocessing.Event()
    pipe, theirs = multiprocessing.Pipe()
    strangers = multiprocessing.Process(target=_strangers, args=(port, options, end, theirs), daemon=True)
    before = {"cpu": cpu_seconds(pid), "mb": resident_mb(pid), "audit": _audit(fleet)}
    load = os.getloadavg()[0]
    strangers.start()
    outcome = asyncio.run(_node(fleet, port, options.seconds))
    after = {"cpu": cpu_seconds(pid), "mb": resident_mb(pid), "audit": _audit(fleet)}
    end.set()
    counts: Counter[str] = pipe.recv()
    strangers.join()
    time.sleep(12)  # a window of the audit log
    refused = _refused(fleet, port)
    waits = sorted(outcome.waits)
    return {
        "seconds": options.seconds,
        "load_before": load,
        "sent_per_second": counts["sent"] / options.seconds,
        "not_taken_per_second": counts.pop("not taken", 0) / options.seconds,
        "answered_per_second": sum(counts[one] for one in counts if one.startswith("answer")) / options.seconds,
        "counts": dict(counts),
        "refused_per_second": sum(refused.values()) / options.seconds,
        "refused": refused,
        "node_certificates": outcome.certificates,
        "node_refused": dict(outcome.refused),
        "node_wait_median_ms": waits[len(waits) // 2] * 1000 if waits else None,
        "node_wait_longest_ms": waits[-1] * 1000 if waits else None,
        "service_cpu_share": (after["cpu"] - before["cpu"]) / options.seconds,
        "service_mb": {"before": before["mb"], "after": after["mb"], "later": resident_mb(pid), "peak": peak_mb(pid)},
        "audit_bytes": _audit(fleet) - before["audit"],
    }


async def _node(fleet: Fleet, port: int, seconds: float) -> Outcome:
    (node,), outcome, until = fleet.nodes, Outcome(), time.monotonic() + seconds
    left = list(node.requests)
    while time.monotonic() < until and left:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=node.context)
            outcome.connections += 1
            try:
                while time.monotonic() < until and left:
                    await ask(reader, writer, left.pop(), outcome)
                    await asyncio.sleep(0.5)
            finally:
                writer.transport.abort()
    await asyncio.sleep(max(0.1, until - time.monotonic()))
    return outcome


def _refused(fleet: Fleet, port: int) -> dict[str, int]:
    """What the service says of it."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=fleet.nodes[0].context, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", HEALTH.path)
        health = decode(connection.getresponse().read(), Health)
    return {one.word: one.count for one in health.refused}


def _strangers(port: int, options: argparse.Namespace, end: Event, pipe: Any) -> None:
    counts: Counter[str] = Counter(sent=0)
    asyncio.run(_flood(port, options, end, counts))
    pipe.send(counts)


async def _flood(port: int, options: argparse.Namespace, end: Event, counts: Counter[str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port, ssl=context)

    async def again(what: str, client: Callable[..., Awaitable[None]], *data: bytes) -> None:
        while True:
            try:
                await client(*data)
            except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
                counts[f"{what} ended"] += 1
                await asyncio.sleep(0.1)

    async def tokens() -> None:
        reader, writer = await opened()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        reading = asyncio.create_task(_count(reader, counts))
        pause = _BATCH * options.connections / options.rate
        due = time.monotonic()
        try:
            while not reading.done():
                if writer.transport.get_write_buffer_size() < len(_WRONG) * _BATCH:
                    writer.write(_WRONG * _BATCH)
                    counts["sent"] += _BATCH
                else:
                    counts["not taken"] += _BATCH
                due += pause
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            reading.cancel()
            writer.close()

    async def stay(data: bytes) -> None:
        reader, writer = await opened()
        writer.write(data)
        await _count(reader, counts)
        writer.close()

    clients = [again("tokens", tokens) for _ in range(options.connections)]
    clients += [again("large", stay, _LARGE) for _ in range(4)] + [
        again("slow", stay, _HALF) for _ in range(options.slow)
    ]
    tasks = [asyncio.create_task(client) for client in clients]
    await asyncio.to_thread(end.wait)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _count(reader: asyncio.StreamReader, counts: Counter[str]) -> None:
    while data := await reader.read(1 << 16):
        for word in (b"rate", b"token-unknown", b"too-large", b"malformed", b"slow"):
            counts[f"answer {word.decode()}"] += data.count(b'"word":"' + word)


def _audit(fleet: Fleet) -> int:
    return (fleet.directory / "state" / "audit.jsonl").stat().st_size


if __name__ == "__main__":
    sys.exit(main())
