"""The demo's traffic: the shipper's long-lived connections, and new connections one after the other."""

from __future__ import annotations

import threading
import time
from http.client import HTTPConnection, HTTPException
from types import TracebackType

from nodeseal_lab.errors import LabError
from nodeseal_lab.lab import Lab
from nodeseal_lab.namespaces import run_in
from nodeseal_lab.plan import PIPELINE_HTTP_PORT, PIPELINE_LINES_PORT

_WAIT_SECONDS = 15.0
_POLL_SECONDS = 0.02


class TrafficError(LabError):
    """A connection broke that should have lived, or an answer did not come."""


class LongConnection:
    """One TCP connection from shipper to pipeline, a numbered line each 100 ms, each echo checked by the program
    itself."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self._log = lab.pod_directory("shipper") / f"{name}.log"
        self._process = lab.start_app(
            "shipper",
            "line_client",
            str(lab.plan.pod("pipeline").named_address),
            str(PIPELINE_LINES_PORT),
            output=f"{name}.log",
        )
        self.wait_for_lines(1)
        _, self.local, self.remote = self._words()[0]

    @property
    def lines(self) -> int:
        """How many lines have come back by now. Raises TrafficError when the connection is broken."""
        words = self._words()
        if not words:
            if not self._process.alive:
                raise TrafficError(f"the long-lived connection did not start ({self._log})")
            return 0
        if words[-1][0] == "failed":
            raise TrafficError(f"the long-lived connection broke after line {' '.join(words[-1][1:])}")
        return sum(1 for word in words if word[0].isdigit())

    def wait_for_lines(self, more: int) -> int:
        """Waits until this many more lines have come back; returns their number in all. Raises TrafficError."""
        goal = self.lines + more
        deadline = time.monotonic() + _WAIT_SECONDS
        while (lines := self.lines) < goal:
            if time.monotonic() > deadline:
                raise TrafficError(f"the long-lived connection hangs: {lines} of {goal} lines came back")
            time.sleep(_POLL_SECONDS)
        return lines

    def close(self) -> tuple[int, float]:
        """Ends it; returns the number of lines and the longest time for one to come back, in milliseconds."""
        _ = self.lines
        self._lab.processes.end([self._process])
        word, *rest = self._words()[-1]
        if word != "closed":
            raise TrafficError(f"the long-lived connection did not end in order: {word} {' '.join(rest)}")
        return int(rest[0]), float(rest[1])

    def _words(self) -> list[list[str]]:
        # Only whole lines: the last one may be in the middle of being written.
        text = self._log.read_text() if self._log.exists() else ""
        return [line.split() for line in text.split("\n")[:-1]]


class NewConnections:
    """While the block runs: a new TCP connection from shipper to pipeline with one HTTP request each, one after
    another."""

    def __init__(self, lab: Lab) -> None:
        self._netns = lab.plan.pod("shipper").netns
        self._address = str(lab.plan.pod("pipeline").named_address)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=run_in, args=(self._netns, self._work), name="new connections")
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> NewConnections:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_answers(self, more: int) -> None:
        """Waits until this many more were answered, or one failed. Raises TrafficError."""
        goal = self.answered + more
        deadline = time.monotonic() + _WAIT_SECONDS
        while self.answered < goal and not self.failures:
            if time.monotonic() > deadline:
                raise TrafficError(f"new connections hang: {self.answered} of {goal} were answered")
            time.sleep(_POLL_SECONDS)

    def _work(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            connection = HTTPConnection(self._address, PIPELINE_HTTP_PORT, timeout=10)
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise HTTPException(f"status {response.status}")
                self.answered += 1
            except (OSError, HTTPException) as error:
                self.failures.append(f"connection {self.answered + len(self.failures) + 1}: {error}")
            finally:
                connection.close()
