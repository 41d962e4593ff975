"""Many long-lived connections between pods of a lab, opened by one program in each pod (support/traffic.py)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nodeseal_lab.lab import Lab
from support.patience import wait_for
from support.pod_traffic import PodTraffic, new_marker

PATIENCE = 60.0
_programs = itertools.count()


@dataclass(frozen=True, slots=True)
class Total:
    """Of all connections, both ends: messages sent and received by either side."""

    opened: int
    closed: int
    cut: int
    wrong: int
    sent: int
    received: int
    incidents: int


class LongLived:
    """`count` connections, spread over the pairs (client pod, server pod) and the addresses that the lab's pods have,
    gone with the `with` block."""

    def __init__(self, lab: Lab, pairs: Sequence[tuple[str, str]], count: int, *, interval_ms: int = 500) -> None:
        self.lab = lab
        self.count = count
        self._group = f"long{next(_programs)}"
        self._programs: dict[str, PodTraffic] = {}
        self._clients = {source for source, _ in pairs}
        try:
            for pod in sorted({pod for pair in pairs for pod in pair}):
                self._programs[pod] = PodTraffic(lab, pod)
            ways = [
                (source, self._programs[target].listen(str(host)))
                for source, target in pairs
                for host in lab.plan.pod(target).addresses
            ]
            shares = [len(range(number, count, len(ways))) for number in range(len(ways))]
            for (source, address), share in zip(ways, shares, strict=True):
                self._programs[source].open(
                    self._group, address, share, new_marker(), interval_ms=interval_ms, reply_ms=interval_ms
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LongLived:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the programs."""
        for program in self._programs.values():
            program.close()
        self._programs.clear()

    def open(self) -> int:
        """How many connections are open, as their clients see it."""
        return sum(counts["open"] for counts in self._client_counts())

    def incidents(self) -> list[dict[str, Any]]:
        """What went wrong on either side, see support.traffic."""
        return [incident for program in self._programs.values() for incident in program.incidents()]

    def wait_open(self) -> None:
        """Until every connection has carried a message both ways."""
        wait_for(lambda: self.incidents() or self.open() == self.count, "every connection is open", PATIENCE)

    def wait_heard_since(self, moment: float) -> None:
        """Until every connection, at both ends, has heard of the other side after the moment (CLOCK_MONOTONIC)."""

        def heard() -> bool:
            for program in self._programs.values():
                asked = time.monotonic()
                counts = program.counts()
                parts = [counts["served"], *counts["groups"].values()]
                if any(asked - part["quietest_ms"] / 1000 <= moment for part in parts if part["open"]):
                    return False
            return True

        wait_for(lambda: self.incidents() or heard(), "messages arrive in every connection, at both ends", PATIENCE)

    def finish(self) -> Total:
        """Ends every connection in order, and returns when both ends have."""
        for pod in self._clients:
            self._programs[pod].finish(self._group)
        wait_for(lambda: self.open() == 0 and self._served("open") == 0, "every connection ends", PATIENCE)
        return self.total()

    def total(self) -> Total:
        """Of what was so far. `sent` and `received` are read one after the other: equal only when nothing is open."""
        clients = self._client_counts()
        return Total(
            opened=sum(counts["opened"] for counts in clients),
            closed=sum(counts["closed"] for counts in clients),
            cut=sum(counts["cut"] + counts["failed"] for counts in clients),
            wrong=sum(counts["wrong"] for counts in clients) + self._served("wrong"),
            sent=sum(counts["sent"] for counts in clients) + self._served("sent"),
            received=sum(counts["received"] for counts in clients) + self._served("received"),
            incidents=len(self.incidents()),
        )

    def so_far(self) -> str:
        """One line for a person."""
        total = self.total()
        return (
            f"{total.opened} connections, {total.received:,} messages: {total.cut} cut, "
            f"{total.wrong} with bytes lost or repeated"
        )

    def _client_counts(self) -> list[dict[str, int]]:
        return [self._programs[pod].group(self._group) for pod in self._clients]

    def _served(self, what: str) -> int:
        return sum(int(program.counts()["served"][what]) for program in self._programs.values())
