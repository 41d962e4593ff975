"""What a published workload's new tunnels feel of strangers on port 15008: `python -m bench.strangers`.

Two cores with one worker each, as on two nodes, in a network namespace of their own. A workload of the one dials a
server behind the other again and again, each time through a new tunnel (its credentials are given to its core anew).
Strangers, who have no certificate, do one of these meanwhile:

    X25519     1,000 sources send a recorded hello with a share of that group, and come again when it is answered
    P-384      the same: the dearest hello that is taken
    ffdhe8192  the same: the dearest that OpenSSL knows
    half-open  one source opens connections as fast as it can, and sends nothing

Each is measured between two stretches without one, and compared with both. Who gets a CPU is not the core's to decide:
what makes the tunnels goes first, then the cores with all their threads (SCHED_FIFO), and the strangers' program comes
last, which would have CPUs of its own elsewhere. How many connections it has made is told as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import psutil

from bench.build import build_programs
from bench.errors import BenchError
from bench.hello import client_hello, group
from bench.lone import lone_core, lone_namespace
from bench.lone_mesh import certify, issuing, lone_service, lone_workload, receive_answer
from bench.rounds import medians, percentile
from bench.wire import REQUEST
from nodeseal.cores.client import CoreClient
from nodeseal.mesh.address import HBONE_PORT
from nodeseal.mesh.model import Mesh, ServicePort
from nodeseal.splice.native import LISTEN_HBONE, LISTEN_OUTBOUND
from nodeseal_lab.errors import LabError
from nodeseal_lab.plan import TRUST_DOMAIN

ROUNDS = 3
SECONDS = 5.0
SOURCES = 1_000
HALF_OPEN = 17_000
TARGET = 3.0
_CLIENT = "127.0.0.1"  # the address from which the kernel dials within 127.0.0.0/8
_SERVICE = "127.2.0.1"
_SERVER = "127.9.9.9"
_PORT = 8080
_PATIENCE = 60.0
_SETTLING = 0.5
_STRANGE = "127.100"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.strangers", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"each stretch (default {SECONDS:g})")
    parser.add_argument("--only", default=",".join(FLOODS), help="what strangers do, with commas (default: all)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    wanted = options.only.split(",")
    if unknown := set(wanted) - FLOODS.keys():
        parser.error(f"no such flood: {', '.join(sorted(unknown))}; there are {', '.join(FLOODS)}")
    _raise_descriptor_limit()
    try:
        programs = build_programs()
        with lone_namespace():
            rounds = [
                measure(str(programs.serve), name, options.seconds) for _ in range(options.rounds) for name in wanted
            ]
    except (BenchError, LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    figures = summarise(rounds)
    print(json.dumps(figures, indent=1) if options.output == "json" else markdown(figures))
    return 0


def measure(serve: str, name: str, seconds: float) -> dict[str, Any]:
    """One flood between two stretches without one; milliseconds. `failed`: tunnels that did not come about."""
    _put_first(os.getpid(), 2)
    server = subprocess.Popen([serve, f"{_SERVER}:{_PORT}"])
    try:
        with _site() as dial:
            _dials(dial, _SETTLING)
            before, _ = _dials(dial, seconds)
            with _strangers(FLOODS[name]) as count:
                time.sleep(_SETTLING)
                begun, before_it = time.perf_counter(), count()
                during, failed = _dials(dial, seconds)
                rate = (count() - before_it) / (time.perf_counter() - begun)
            time.sleep(_SETTLING)
            after, _ = _dials(dial, seconds)
    finally:
        server.terminate()
        server.wait()
    alone = [*before, *after]
    figures = {
        f"{stretch}_p{percent}": percentile(values, percent)
        for stretch, values in (("alone", alone), ("during", during))
        for percent in (50, 99)
    }
    ratio = figures["during_p99"] / figures["alone_p99"]
    made = {"tunnels": len(during), "failed": failed, "strangers_per_second": rate}
    return {"flood": name, **figures, "ratio_p99": ratio, **made}


def summarise(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the rounds, a flood at a time; the ratios are those within each round."""
    return {"floods": medians(measured, "flood"), "target": TARGET}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as they stand in docs/hostile-peers.md."""
    lines = [
        "| strangers | come a second | a new tunnel: median alone, beside them | p99 alone, beside them | "
        "ratio of p99 (worst round) | made, failed |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures["floods"].items():
        lines.append(
            f"| {name} | {row['strangers_per_second']:,.0f} | {row['alone_p50']:.1f}, {row['during_p50']:.1f} ms | "
            f"{row['alone_p99']:.1f}, {row['during_p99']:.1f} ms | "
            f"{row['ratio_p99']:.1f} ({row['ratio_p99_worst']:.1f}) | {row['tunnels']:.0f}, {row['failed']:.0f} |"
        )
    return "\n".join(lines)


# ---- the published workload


def _dials(dial: Callable[[], None], seconds: float) -> tuple[list[float], int]:
    """(milliseconds of each new tunnel with a request in it, one after the other for so long, how many failed)."""
    taken, failed = [], 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        try:
            dial()
            taken.append((time.perf_counter() - begun) * 1000)
        except (BenchError, OSError):
            failed += 1
    return taken, failed


@contextlib.contextmanager
def _site() -> Iterator[Callable[[], None]]:
    """Two cores; the function makes a request through a new tunnel."""
    client, server = lone_workload("client", _CLIENT), lone_workload("server", _SERVER)
    mesh = Mesh.build(TRUST_DOMAIN, [client, server], [lone_service("s", _SERVICE, ServicePort(_PORT, _PORT), server)])
    with contextlib.ExitStack() as stack:
        near, far = (stack.enter_context(lone_core(1, TRUST_DOMAIN)) for _ in range(2))
        for core in (near, far):
            for thread in psutil.Process(core.pid).threads():
                _put_first(thread.id, 1)
        signer = stack.enter_context(issuing())
        for core, workload, role, address in (
            (near, client, LISTEN_OUTBOUND, (_SERVICE, _PORT)),
            (far, server, LISTEN_HBONE, (_SERVER, HBONE_PORT)),
        ):
            core.ask(CoreClient.mesh, mesh, 1)
            listener = stack.enter_context(socket.create_server(address, backlog=4096))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
            core.add(1, workload, TRUST_DOMAIN, {role: listener.fileno()})
        renew = certify(near, 1, client, signer)
        certify(far, 1, server, signer)

        def dial() -> None:
            with socket.create_connection((_SERVICE, _PORT), timeout=_PATIENCE) as stream:
                stream.sendall(REQUEST)
                receive_answer(stream)
            renew()

        yield dial


# ---- strangers


Count = Callable[[], None]
Flood = Callable[[Count], NoReturn]
"""Calls what it is given for each connection that it has made."""


def _replay(name: str) -> Flood:
    return lambda count: _send_hellos(client_hello(group(name)), count)


def _send_hellos(hello: bytes, count: Count) -> NoReturn:
    poll = select.epoll()
    open_ones: dict[int, tuple[socket.socket, int]] = {}

    def begin(source: int) -> None:
        """The hello is there when the connection is accepted: none of them is one that says nothing."""
        one = socket.socket()
        one.settimeout(_PATIENCE)
        one.bind((f"{_STRANGE}.{source // 250}.{source % 250 + 1}", 0))
        with contextlib.suppress(OSError):
            one.connect((_SERVER, HBONE_PORT))
            one.send(hello)
            count()
        open_ones[one.fileno()] = one, source
        poll.register(one, select.EPOLLIN)

    for source in range(SOURCES):
        begin(source)
    while True:
        for fd, _events in poll.poll():
            one, source = open_ones.pop(fd)
            one.close()
            begin(source)


def _open_and_say_nothing(count: Count) -> NoReturn:
    standing: list[socket.socket] = []
    while True:
        one = socket.socket()
        one.settimeout(1.0)
        try:
            one.bind((f"{_STRANGE}.0.1", 0))
            one.connect((_SERVER, HBONE_PORT))
            standing.append(one)
            count()
        except OSError:
            one.close()
        if len(standing) > HALF_OPEN:
            standing.pop(0).close()


FLOODS: dict[str, Flood] = {
    "X25519": _replay("X25519"),
    "P-384": _replay("P-384"),
    "ffdhe8192": _replay("ffdhe8192"),
    "half-open": _open_and_say_nothing,
}


@contextlib.contextmanager
def _strangers(flood: Flood) -> Iterator[Callable[[], int]]:
    """The flood in a process of its own; the function tells how many connections it has made."""
    shared = mmap.mmap(-1, 8)

    def count() -> None:
        shared[:] = (int.from_bytes(shared[:], "little") + 1).to_bytes(8, "little")

    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            flood(count)
        finally:
            os._exit(1)
    try:
        yield lambda: int.from_bytes(shared[:], "little")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _put_first(thread: int, priority: int) -> None:
    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))


def _raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
