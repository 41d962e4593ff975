"""Many long-lived connections of a pod, with numbered lines on each (apps/line_clients.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nodeseal_lab.demo.traffic import TrafficError
from nodeseal_lab.lab import Lab
from nodeseal_lab.plan import PIPELINE_LINES_PORT

_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that has ended by itself. `at`: of time.monotonic()."""

    local: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Total:
    """When all have ended: how many in order, lines sent and come back, the longest time for one."""

    closed: int
    sent: int
    received: int
    longest_ms: float


class NumberedConnections:
    """`count` of them, from one pod to another. `name`: of the program's log."""

    def __init__(self, lab: Lab, source: str, destination: str, count: int, name: str) -> None:
        self.source, self.destination, self.count = source, destination, count
        self._lab = lab
        self._log = lab.pod_directory(source) / f"{name}.log"
        self._process = lab.start_app(
            source,
            "line_clients",
            str(lab.plan.pod(destination).named_address),
            str(PIPELINE_LINES_PORT),
            str(count),
            output=f"{name}.log",
        )

    @property
    def what(self) -> str:
        """ "100 from shipper to pipeline"."""
        return f"{self.count} from {self.source} to {self.destination}"

    @property
    def open(self) -> int:
        """How many are, as the program said last."""
        return self._state()[0]

    @property
    def lines(self) -> int:
        """How many have come back."""
        return self._state()[1]

    @property
    def cuts(self) -> list[Cut]:
        """Those that have ended by themselves."""
        return [Cut(words[1], float(words[2]), " ".join(words[3:])) for words in self._words() if words[0] == "cut"]

    def wait_open(self) -> None:
        """Until all are, with a line on each that came back. Raises TrafficError."""
        self._wait(lambda: self.open == self.count and self.lines >= self.count, f"{self.what} are open")

    def wait_for_lines(self) -> None:
        """Until as many lines more have come back as there are connections. Raises TrafficError."""
        goal = self.lines + self.open
        self._wait(lambda: self.lines >= goal, f"lines come back on {self.what}")

    def wait_cut(self) -> None:
        """Until none is open any more. Raises TrafficError."""
        self._wait(lambda: len(self.cuts) == self.count, f"{self.what} are cut")

    def end(self) -> Total:
        """Closes those that are open, in order. Raises TrafficError."""
        self._lab.processes.end([self._process])
        word, *numbers = self._words()[-1]
        if word != "closed":
            raise TrafficError(f"the program of the connections {self.what} has not ended in order ({self._log})")
        return Total(int(numbers[0]), int(numbers[1]), int(numbers[2]), float(numbers[3]))

    def _state(self) -> tuple[int, int]:
        found = next((words for words in reversed(self._words()) if words[0] == "open"), None)
        return (int(found[1]), int(found[2])) if found is not None else (0, 0)

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not holds():
            if time.monotonic() > deadline or not self._process.alive:
                last = " ".join(self._words()[-1]) if self._words() else "nothing"
                raise TrafficError(f"not so after {_WAIT_SECONDS:.0f} s: {what}; it said {last} ({self._log})")
            time.sleep(_POLL_SECONDS)

    def _words(self) -> list[list[str]]:
        # Only whole lines: the last one may be in the middle of being written.
        text = self._log.read_text() if self._log.exists() else ""
        return [line.split() for line in text.split("\n")[:-1]]
