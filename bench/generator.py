"""Runs the load generator (load.c) in the client pod, and the accounts of the proxies over the same stretch of time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.accounting import Usage, read_machine_busy, read_memory, read_usage
from bench.bed import CLIENT, Bed
from bench.errors import BenchError
from bench.histogram import Histogram
from bench.loads import Load
from bench.peers.peer import Started

_OPENING_SECONDS = 120.0
_ANSWER_SECONDS = 30.0
_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one load. Rates are per second, within the measured time."""

    load: str
    seconds: float
    requests: int
    requests_per_s: float
    latency: Histogram
    connections: int
    connections_per_s: float
    connection_latency: Histogram
    up_gbps: float
    down_gbps: float
    errors: int
    unfinished: int
    usage: Usage
    pss_mb: float
    other_cpu_s: float
    """CPU time of everything that is neither proxy nor load nor application: neighbours, the helpers, interrupts that
    hit the idle processor."""

    @property
    def gigabytes(self) -> float:
        """Transferred in both directions, in streams."""
        return (self.up_gbps + self.down_gbps) / 8 * self.seconds

    def to_json(self) -> dict[str, Any]:
        """As it stands in bench.json; what the load does not exercise is left out."""
        value: dict[str, Any] = {"load": self.load, "seconds": round(self.seconds, 3), "errors": self.errors}
        if self.requests:
            value |= {"requests_per_s": self.requests_per_s, "latency_ms": self.latency.percentiles()}
            value |= {"unfinished": self.unfinished}
        if self.connections:
            value |= {"connections_per_s": self.connections_per_s}
            value |= {"connection_latency_ms": self.connection_latency.percentiles()}
        if self.gigabytes:
            value |= {"up_gbps": self.up_gbps, "down_gbps": self.down_gbps}
        usage = self.usage
        value["cpu_s"] = {"total": usage.total_s, "user": usage.user_s, "system": usage.system_s}
        value["switches"] = {"voluntary": usage.voluntary_switches, "involuntary": usage.involuntary_switches}
        return value | {"pss_mb": self.pss_mb, "other_cpu_s": self.other_cpu_s}


@dataclass
class Generator:
    """A load that is running: between `ready` and the end of the `with` block its connections are open."""

    process: subprocess.Popen[bytes]
    load: Load
    _buffer: bytes = field(default=b"", repr=False)

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def expect(self, word: str, seconds: float) -> None:
        """Waits for a line. Raises BenchError when another one comes, the generator ends, or time is up."""
        line = self.read_line(seconds)
        if line != word:
            raise BenchError(f"load {self.load.name}: expected '{word}', found {line!r}")

    def read_result(self) -> dict[str, Any]:
        """The JSON that follows "done". Raises BenchError."""
        result: dict[str, Any] = json.loads(self.read_line(_ANSWER_SECONDS))
        return result

    def read_line(self, seconds: float) -> str:
        """The next line of output. Raises BenchError."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        fd = self.process.stdout.fileno()
        # select() refuses descriptors from 1024 on, of which the bench may hold thousands.
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while b"\n" not in self._buffer:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise BenchError(f"load {self.load.name}: no answer from the generator after {seconds:.0f} s")
            part = os.read(fd, 1 << 16)
            if not part:
                assert self.process.stderr is not None
                why = self.process.stderr.read().decode(errors="replace").strip()
                raise BenchError(f"load {self.load.name}: the generator ended: {why or 'it said nothing'}")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


@contextmanager
def running(bed: Bed, started: Started, load: Load, *, warmup: float, seconds: float) -> Iterator[Generator]:
    """Starts a load and waits until it is warm; ended at the end of the block. Raises BenchError."""
    argv = [str(bed.programs.load), "--target", started.target, "--warmup", str(warmup), "--seconds", str(seconds)]
    argv += load.arguments()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    process = bed.run(CLIENT, start)
    assert process.stdin is not None
    try:
        generator = Generator(process, load)
        generator.expect("ready", _OPENING_SECONDS + warmup)
        yield generator
        # At the end of its input it closes its connections, as a program does that has finished.
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def measure(
    bed: Bed,
    started: Started,
    load: Load,
    *,
    server: int,
    warmup: float,
    seconds: float,
    observer: AbstractContextManager[object] | None = None,
) -> Measured:
    """One load, measured. `server`: the pid of the application. `observer`: entered when the load is warm, left when
    it has been measured. Raises BenchError."""
    with running(bed, started, load, warmup=warmup, seconds=seconds) as generator, observer or contextlib.nullcontext():
        pids = started.pids
        ends = [generator.process.pid, server]
        before, ends_before, busy_before = read_usage(pids), read_usage(ends), read_machine_busy()
        generator.say()
        generator.expect("done", seconds + _ANSWER_SECONDS)
        after, ends_after, busy_after = read_usage(pids), read_usage(ends), read_machine_busy()
        result = generator.read_result()
        memory = read_memory(pids)
    usage = after - before
    accounted = usage.total_s + (ends_after - ends_before).total_s
    return _measured(load, result, usage, memory.pss_mb, max(0.0, busy_after - busy_before - accounted))


def _measured(load: Load, result: Mapping[str, Any], usage: Usage, pss_mb: float, other_cpu_s: float) -> Measured:
    seconds = float(result["seconds"])
    requests, connections = result["requests"], result["connections"]
    return Measured(
        load=load.name,
        seconds=seconds,
        requests=requests["count"],
        requests_per_s=requests["count"] / seconds,
        latency=Histogram(requests["buckets"]),
        connections=connections["count"],
        connections_per_s=connections["count"] / seconds,
        connection_latency=Histogram(connections["buckets"]),
        up_gbps=result["up_bytes_per_s"] * 8 / 1e9,
        down_gbps=result["down_bytes_per_s"] * 8 / 1e9,
        errors=requests["errors"] + connections["errors"] + result["lost"],
        unfinished=requests["unfinished"],
        usage=usage,
        pss_mb=pss_mb,
        other_cpu_s=other_cpu_s,
    )
