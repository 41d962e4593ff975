"""What a quiet workload feels of a loud one on the same workers: `python -m bench.fairness`.

Two cores with one worker each, as on two nodes, in a network namespace of their own: one has the workloads `quiet` and
`loud`, the other a server for each of them, behind tunnels. A program of `quiet` makes requests, a millisecond apart,
on one open connection; in turn nothing else happens, and `loud` does one of these:

    opening       opens connections as fast as it can, up to 20,000, makes one request on each and keeps them
    standing      has them open, as many as it got
    stalled       has 100 downloads open and reads nothing
    requests      makes requests on 500 connections, one after the other on each, as fast as they go
    bulk          downloads in 8 streams, as fast as it goes
    destinations  dials 20,000 destinations, each a question of its own, as fast as it can

Each load is measured between two stretches without one, and compared with both: the machine's own noise is in the
three alike. `loud` has no limits. Who gets a CPU is not the core's to decide: what belongs to `quiet` goes first, then
the cores (SCHED_FIFO), and what belongs to `loud` comes last (a nice of 19). Were `quiet` no more than a core's equal,
it would wait for a CPU until a core has nothing to do, which under bulk is never.

The same is measured without nodeseal, where the programs talk to the servers themselves: so much of a ratio is the
machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from bench.build import Programs, build_programs
from bench.errors import BenchError
from bench.lone import LoneCore, lone_core, lone_namespace
from bench.lone_mesh import certify, issuing, lone_service, lone_workload, receive_answer
from bench.rounds import medians, percentile
from bench.wire import MARKER, REQUEST
from nodeseal.cores.client import CoreClient
from nodeseal.mesh.address import HBONE_PORT
from nodeseal.mesh.model import Mesh, ServicePort, WorkloadName
from nodeseal.splice.native import LISTEN_HBONE, LISTEN_OUTBOUND
from nodeseal_lab.errors import LabError
from nodeseal_lab.plan import TRUST_DOMAIN

ROUNDS = 5
SECONDS = 3.0
CONNECTIONS = 20_000
STALLED = 100
BUSY = 500
STREAMS = 8
TARGET = 2.0
_QUIET, _QUIET_SERVER = "127.2.0.1", "127.9.9.9"
_LOUD, _LOUD_SERVER = "127.2.0.2", "127.9.9.8"
_PORT = 8080
_LOUD_PORT = 8081
"""Of its listener, which has every address, so that every destination can be dialled."""
_PATIENCE = 60.0
_SETTLING = 0.5
_APART = 0.001
_DOWNLOAD = b"GET /download HTTP/1.1\r\nHost: bench\r\nX-Marker: " + MARKER + b"\r\n\r\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"each stretch (default {SECONDS:g})")
    parser.add_argument("--only", default=",".join(LOADS), help="loads, with commas (default: all)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    wanted = options.only.split(",")
    if unknown := set(wanted) - LOADS.keys():
        parser.error(f"no such load: {', '.join(sorted(unknown))}; there are {', '.join(LOADS)}")
    try:
        programs = build_programs()
        with lone_namespace():
            rounds = [measure(programs, name, options.seconds) for _ in range(options.rounds) for name in wanted]
    except (BenchError, LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    figures = summarise(rounds)
    print(json.dumps(figures, indent=1) if options.output == "json" else markdown(figures))
    return 0


def measure(programs: Programs, load: str, seconds: float) -> dict[str, Any]:
    """One load between two stretches without one; milliseconds. `direct_ratio_p99` is what it is without nodeseal."""
    serve = str(programs.serve)
    with _servers(serve), _site() as site:
        figures = _measure(site, LOADS[load](programs, (_LOUD, _LOUD_PORT)), (_QUIET, _PORT), seconds)
    if load in ONLY_WITH:
        return {"load": load, **figures}
    with _servers(serve):
        direct = _measure(None, LOADS[load](programs, (_LOUD_SERVER, _PORT)), (_QUIET_SERVER, _PORT), seconds)
    return {"load": load, **figures, "direct_ratio_p99": direct["ratio_p99"]}


def _measure(
    site: _Site | None, loud: contextlib.AbstractContextManager[None], to: tuple[str, int], seconds: float
) -> dict[str, Any]:
    _put_first(0)
    with socket.create_connection(to, timeout=_PATIENCE) as quiet:
        _requests(quiet, _SETTLING)
        before = _requests(quiet, seconds)
        with loud:
            during = _requests(quiet, seconds)
            held = site.connections_of_loud() if site is not None else 0
        if site is not None:
            site.wait_until_loud_has_left()
        time.sleep(_SETTLING)
        after = _requests(quiet, seconds)
    alone = [*before, *after]
    return {
        "held": held,
        "alone_p50": percentile(alone, 50),
        "alone_p99": percentile(alone, 99),
        "during_p50": percentile(during, 50),
        "during_p99": percentile(during, 99),
        "ratio_p50": percentile(during, 50) / percentile(alone, 50),
        "ratio_p99": percentile(during, 99) / percentile(alone, 99),
    }


def summarise(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the rounds, a load at a time; the ratios are those within each round."""
    return {"loads": medians(measured, "load"), "target": TARGET}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as they stand in docs/performance.md."""
    lines = [
        "| the neighbour | connections it has | median alone, beside it | p99 alone, beside it | "
        "ratio of p99 (worst round) | without nodeseal |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures["loads"].items():
        direct = f"{row['direct_ratio_p99']:.2f}" if "direct_ratio_p99" in row else "-"
        lines.append(
            f"| {name} | {row['held']:,.0f} | {row['alone_p50']:.2f}, {row['during_p50']:.2f} ms | "
            f"{row['alone_p99']:.2f}, {row['during_p99']:.2f} ms | "
            f"{row['ratio_p99']:.2f} ({row['ratio_p99_worst']:.2f}) | {direct} |"
        )
    return "\n".join(lines)


# ---- the quiet one


def _requests(stream: socket.socket, seconds: float) -> list[float]:
    """Milliseconds of each exchange, one after the other for so long."""
    taken = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        stream.sendall(REQUEST)
        receive_answer(stream)
        taken.append((time.perf_counter() - begun) * 1000)
        time.sleep(_APART)
    return taken


# ---- the loud ones


@contextlib.contextmanager
def _child(body: Callable[[Callable[[], object]], None]) -> Iterator[None]:
    """Runs `body` in a process of its own, until the end of the block. The block begins when body has called what it is
    given."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_child(body, writing)
    os.close(writing)
    try:
        if os.read(reading, 1) != b"r":
            raise BenchError("the loud workload's program ended before its time")
        yield
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run_child(body: Callable[[Callable[[], object]], None], writing: int) -> NoReturn:
    status = 1
    try:
        _put_last(0)
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        body(functools.partial(os.write, writing, b"r"))
        status = 0
    finally:
        os._exit(status)


def _put_first(pid: int) -> None:
    """A process of one thread; 0 is this one."""
    os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(2))


def _put_last(pid: int) -> None:
    """Same."""
    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, pid, 19)


def _open_all(keep: list[socket.socket], to: tuple[str, int], first: bytes, count: int) -> None:
    """Connections of `loud` that have sent their first bytes; those that are refused are not tried again."""
    for _ in range(count):
        with contextlib.suppress(OSError):
            connection = socket.create_connection(to, timeout=_PATIENCE)
            connection.sendall(first)
            connection.setblocking(False)
            keep.append(connection)


def _opening(_programs: Programs, to: tuple[str, int]) -> contextlib.AbstractContextManager[None]:
    def body(ready: Callable[[], object]) -> None:
        ready()
        kept: list[socket.socket] = []
        _open_all(kept, to, REQUEST, CONNECTIONS)
        signal.pause()

    return _child(body)


def _standing(_programs: Programs, to: tuple[str, int]) -> contextlib.AbstractContextManager[None]:
    def body(ready: Callable[[], object]) -> None:
        kept: list[socket.socket] = []
        _open_all(kept, to, REQUEST, CONNECTIONS)
        ready()
        signal.pause()

    return _child(body)


def _stalled(_programs: Programs, to: tuple[str, int]) -> contextlib.AbstractContextManager[None]:
    def body(ready: Callable[[], object]) -> None:
        kept: list[socket.socket] = []
        _open_all(kept, to, _DOWNLOAD, STALLED)
        ready()
        signal.pause()

    return _child(body)


def _destinations(_programs: Programs, _to: tuple[str, int]) -> contextlib.AbstractContextManager[None]:
    def body(ready: Callable[[], object]) -> None:
        ready()
        while True:
            for number in range(CONNECTIONS):
                with contextlib.suppress(OSError), socket.socket() as connection:
                    connection.setblocking(False)
                    connection.connect((_destination(number), _LOUD_PORT))

    return _child(body)


def _destination(number: int) -> str:
    return f"127.1.{number // 250}.{number % 250 + 1}"


@contextlib.contextmanager
def _generator(programs: Programs, to: tuple[str, int], *load: str) -> Iterator[None]:
    """bench/load.c, in its warm-up, which lasts longer than anything here."""
    command = [str(programs.load), "--target", f"{to[0]}:{to[1]}", "--warmup", "600"]
    with subprocess.Popen(
        [*command, "--seconds", "1", *load], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        _put_last(running.pid)
        try:
            time.sleep(0.5)  # it opens its connections in less
            yield
            if running.poll() is not None:
                raise BenchError(f"the loud workload's program ended with status {running.returncode}")
        finally:
            running.kill()


LOADS: dict[str, Callable[[Programs, tuple[str, int]], contextlib.AbstractContextManager[None]]] = {
    "opening": _opening,
    "standing": _standing,
    "stalled": _stalled,
    "requests": lambda programs, to: _generator(programs, to, "--keepalive", str(BUSY)),
    "bulk": lambda programs, to: _generator(programs, to, "--down", str(STREAMS)),
    "destinations": _destinations,
}
ONLY_WITH = ("destinations",)
"""Loads that mean nothing without nodeseal."""


# ---- the core


class _Site:
    def __init__(self, core: LoneCore, loud: WorkloadName) -> None:
        self._core = core
        self._loud = str(loud)

    def connections_of_loud(self) -> int:
        """How many it has through the core."""
        _stats, rows = self._core.ask(CoreClient.stats)
        return sum(row.connections for row in rows if row.workload == self._loud)

    def wait_until_loud_has_left(self) -> None:
        """Its connections have ended."""
        end = time.monotonic() + _PATIENCE
        while self.connections_of_loud() > 0:
            if time.monotonic() > end:
                raise BenchError("connections of the loud workload do not end")
            time.sleep(0.05)


@contextlib.contextmanager
def _servers(serve: str) -> Iterator[None]:
    """Both applications' servers."""
    with contextlib.ExitStack() as stack:
        for address, put in ((_QUIET_SERVER, _put_first), (_LOUD_SERVER, _put_last)):
            server = subprocess.Popen([serve, f"{address}:{_PORT}"])
            put(server.pid)
            stack.callback(server.wait)
            stack.callback(server.kill)
        time.sleep(_SETTLING)  # they listen in less
        yield


@contextlib.contextmanager
def _site() -> Iterator[_Site]:
    """Two cores with two workloads each."""
    quiet, loud = lone_workload("quiet", "127.3.0.1"), lone_workload("loud", "127.3.0.2")
    quiet_server = lone_workload("quiet-server", _QUIET_SERVER)
    loud_server = lone_workload("loud-server", _LOUD_SERVER)
    services = [
        lone_service("to-quiet", _QUIET, ServicePort(_PORT, _PORT), quiet_server),
        lone_service("to-loud", _LOUD, ServicePort(_LOUD_PORT, _PORT), loud_server),
    ]
    # Services that lead nowhere: their port is another.
    services += [lone_service(f"d{n}", _destination(n), ServicePort(9, 9), quiet) for n in range(CONNECTIONS)]
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # the cores inherit it
    with contextlib.ExitStack() as stack:
        near = stack.enter_context(lone_core(1, TRUST_DOMAIN))
        far = stack.enter_context(lone_core(1, TRUST_DOMAIN))
        signer = stack.enter_context(issuing())
        mesh = Mesh.build(TRUST_DOMAIN, [quiet, loud, quiet_server, loud_server], services)
        for core in (near, far):
            core.ask(CoreClient.mesh, mesh, 1)
        places = [
            (near, quiet, LISTEN_OUTBOUND, (_QUIET, _PORT)),
            (near, loud, LISTEN_OUTBOUND, ("0.0.0.0", _LOUD_PORT)),
            (far, quiet_server, LISTEN_HBONE, (_QUIET_SERVER, HBONE_PORT)),
            (far, loud_server, LISTEN_HBONE, (_LOUD_SERVER, HBONE_PORT)),
        ]
        for key, (core, workload, role, place) in enumerate(places, start=1):
            listener = stack.enter_context(socket.create_server(place, backlog=4096))
            core.add(key, workload, TRUST_DOMAIN, {role: listener.fileno()})
            certify(core, key, workload, signer)
        yield _Site(near, loud.key)


if __name__ == "__main__":
    sys.exit(main())
