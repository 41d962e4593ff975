"""What an open stream feels while tunnels to many new peers are made: `python -m bench.handshakes`.

One core with one worker is both ends: workloads that each dial the same server, so that each makes a tunnel of its
own, and the worker both ends of its handshake. Meanwhile requests are made, one after the other, on a stream that was
open before. There is no capture: the workloads' listeners are dialled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.build import build_programs
from bench.errors import BenchError
from bench.lone import lone_core, lone_namespace
from bench.lone_mesh import certify, issuing, lone_service, lone_workload, receive_answer
from bench.wire import REQUEST
from nodeseal.cores.client import CoreClient
from nodeseal.mesh.address import HBONE_PORT
from nodeseal.mesh.model import Mesh, ServicePort
from nodeseal.splice.native import LISTEN_HBONE, LISTEN_OUTBOUND
from nodeseal_lab.errors import LabError
from nodeseal_lab.plan import TRUST_DOMAIN

TUNNELS = 100
ROUNDS = 5
QUIET_REQUESTS = 500
_SERVER = "127.9.9.9"
_PORT = 8080
_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.handshakes", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    try:
        programs = build_programs()
        with lone_namespace():
            figures = summarise([measure(str(programs.serve)) for _ in range(options.rounds)])
    except (BenchError, LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=1) if options.output == "json" else markdown(figures))
    return 0


def measure(serve: str) -> dict[str, float]:
    """One round, milliseconds."""
    server = subprocess.Popen([serve, f"{_SERVER}:{_PORT}"])
    try:
        with _site() as addresses:
            stream = _connect(addresses[0])
            _ask(stream)
            quiet = [_ask(stream) for _ in range(QUIET_REQUESTS)]
            begun = time.perf_counter()
            newcomers = [_connect(address) for address in addresses[1:]]
            for newcomer in newcomers:
                newcomer.sendall(REQUEST)
            busy: list[float] = []
            while newcomers:
                busy.append(_ask(stream))
                newcomers = [one for one in newcomers if not _answered(one)]
            return {
                "quiet_p50": statistics.median(quiet),
                "quiet_worst": max(quiet),
                "busy_p50": statistics.median(busy),
                "busy_worst": max(busy),
                "all_open_after": (time.perf_counter() - begun) * 1000,
            }
    finally:
        server.terminate()
        server.wait()


def summarise(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The medians of the rounds."""
    names = rounds[0]
    return {"rounds": len(rounds), "tunnels": TUNNELS} | {
        name: statistics.median(one[name] for one in rounds) for name in names
    }


def markdown(figures: dict[str, Any]) -> str:
    """The figures as they stand in docs/performance.md."""
    return "\n".join(
        [
            f"| a request on an open stream | median | slowest (median of {figures['rounds']} rounds) |",
            "|---|---|---|",
            f"| nothing else happens | {figures['quiet_p50']:.2f} ms | {figures['quiet_worst']:.2f} ms |",
            f"| {figures['tunnels']} tunnels are made, which takes {figures['all_open_after']:.0f} ms | "
            f"{figures['busy_p50']:.2f} ms | {figures['busy_worst']:.2f} ms |",
        ]
    )


@contextlib.contextmanager
def _site() -> Iterator[list[str]]:
    """A core; the addresses to dial, each of a workload of its own, lead to the server."""
    server = lone_workload("server", _SERVER)
    sources = [lone_workload(f"w{i}", f"127.3.0.{i + 1}") for i in range(TUNNELS + 1)]
    addresses = [f"127.2.0.{i + 1}" for i in range(TUNNELS + 1)]
    services = [
        lone_service(f"s{i}", address, ServicePort(_PORT, _PORT), server) for i, address in enumerate(addresses)
    ]
    with contextlib.ExitStack() as stack:
        core = stack.enter_context(lone_core(1, TRUST_DOMAIN))
        signer = stack.enter_context(issuing())
        core.ask(CoreClient.mesh, Mesh.build(TRUST_DOMAIN, [server, *sources], services), 1)
        for key, (workload, role, address, port) in enumerate(
            [
                (server, LISTEN_HBONE, _SERVER, HBONE_PORT),
                *((source, LISTEN_OUTBOUND, at, _PORT) for source, at in zip(sources, addresses, strict=True)),
            ],
            start=1,
        ):
            listener = stack.enter_context(socket.create_server((address, port), backlog=TUNNELS))
            core.add(key, workload, TRUST_DOMAIN, {role: listener.fileno()})
            certify(core, key, workload, signer)
        yield addresses


def _connect(address: str) -> socket.socket:
    return socket.create_connection((address, _PORT), timeout=_SECONDS)


def _ask(stream: socket.socket) -> float:
    """Milliseconds of one exchange."""
    begun = time.perf_counter()
    stream.sendall(REQUEST)
    receive_answer(stream)
    return (time.perf_counter() - begun) * 1000


def _answered(newcomer: socket.socket) -> bool:
    """Takes its answer, if there is one, and ends it."""
    newcomer.setblocking(False)
    try:
        newcomer.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    newcomer.settimeout(_SECONDS)
    with newcomer:
        receive_answer(newcomer)
    return True


if __name__ == "__main__":
    sys.exit(main())
