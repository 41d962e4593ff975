"""Probes that run beside a measurement: how long the agent's event loop, and the core's decisions, keep one waiting."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.bed import CLIENT, Bed
from bench.errors import BenchError
from nodeseal.contracts.api import VERSION
from nodeseal.local import run_directory

_ANSWER_SECONDS = 30.0
_FIRST_PORT = 20_000


@dataclass(frozen=True, slots=True)
class Waits:
    """Milliseconds that answers took, sorted."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Waits:
        return cls(tuple(sorted(value * 1000 for value in seconds)))

    def at(self, share: float) -> float | None:
        """The value that `share` (0 to 1) of all do not exceed; None when there are none."""
        if not self.values:
            return None
        return self.values[min(len(self.values) - 1, max(0, round(share * len(self.values)) - 1))]

    def to_json(self) -> dict[str, float | int | None]:
        return {"count": len(self.values), "p50": self.at(0.5), "p99": self.at(0.99), "longest": self.at(1.0)}


class Probe:
    """Asks at a fixed rate in a thread of its own. A question that is late counts from when it was due, so that a stall
    shows in as many as it delays."""

    interval = 0.01

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seconds: list[float] = []
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def waits(self) -> Waits:
        """What was measured, after the end. Raises BenchError when a question was not answered."""
        if self._error is not None:
            raise BenchError(f"{type(self).__name__}: {self._error}") from self._error
        return Waits.of(self._seconds)

    def _run(self) -> None:
        try:
            self.begin()
            due = time.monotonic()
            while not self._stop.is_set():
                self.ask()
                self._seconds.append(time.monotonic() - due)
                due = max(due + self.interval, time.monotonic() - _ANSWER_SECONDS)
                self._stop.wait(max(0.0, due - time.monotonic()))
        except (OSError, ValueError, BenchError) as error:
            self._error = error
        finally:
            self.end()

    def begin(self) -> None:
        """Called first, in the thread."""

    def ask(self) -> None:
        """One question and its answer."""
        raise NotImplementedError

    def end(self) -> None:
        """Called last, in the thread."""


class LoopProbe(Probe):
    """The agent's event loop: the operation "version" of its local API, which needs nothing else."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._path = run_dir / run_directory.AGENT_SOCKET
        self._connection: socket.socket | None = None
        self._request = f"GET {VERSION.path} HTTP/1.1\r\nHost: node\r\n\r\n".encode()

    def begin(self) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(_ANSWER_SECONDS)
        self._connection.connect(str(self._path))

    def ask(self) -> None:
        assert self._connection is not None
        self._connection.sendall(self._request)
        answer = b""
        while not answer.endswith(b"}\n"):
            part = self._connection.recv(4096)
            if not part:
                raise BenchError("the agent closed the connection")
            answer += part

    def end(self) -> None:
        if self._connection is not None:
            self._connection.close()


class DecisionProbe(Probe):
    """The core's decider: connections from the client pod to ports that nobody has asked for, so that each is decided
    anew, and where nobody listens, so that the answer comes at once."""

    interval = 0.02

    def __init__(self, bed: Bed, first_port: int = _FIRST_PORT) -> None:
        super().__init__()
        self._bed = bed
        self._host = str(bed.lab.plan.nodes[1].gateway)
        self._port = first_port

    def ask(self) -> None:
        self._port += 1
        with self._bed.run(CLIENT, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            with contextlib.suppress(ConnectionResetError, ConnectionRefusedError):
                connection.connect((self._host, self._port))
                connection.recv(1)

    @property
    def next_port(self) -> int:
        return self._port + 1


class LineWatch:
    """Waits for lines that a log gets from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def wait(self, text: str, seconds: float) -> float:
        """The time (time.time) in the first new line with this text. Raises BenchError when none comes."""
        deadline = time.monotonic() + seconds
        while True:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                for line in file.read().decode(errors="replace").splitlines(keepends=True):
                    if text in line and line.endswith("\n"):
                        return log_time(line)
            if time.monotonic() > deadline:
                raise BenchError(f"{self._path}: no line with {text!r} after {seconds:.0f} s")
            time.sleep(0.02)

    def last(self, text: str, count: int) -> float:
        """The time in the last of `count` new lines with this text. Raises BenchError when there are fewer."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if text in line]
        if len(lines) < count:
            raise BenchError(f"{self._path}: {len(lines)} lines with {text!r}, expected {count}")
        return log_time(lines[count - 1])


def log_time(line: str) -> float:
    """When a line of an agent's or core's log was written ("2026-01-31 12:00:00,123 ..."), as time.time()."""
    stamp, _, rest = line.partition(",")
    return time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S")) + int(rest[:3]) / 1000
