"""Who takes part in a chaos run, and the connections between them."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

from chaos.errors import ChaosError
from chaos.players import Pairs, Players
from nodeseal_lab.lab import Lab
from support.control import RemoteError
from support.pod_traffic import Address, PodTraffic

INTERVAL_MS = 1000
FINISH_SECONDS = 90.0
_OPENING_SECONDS = 60.0
_BURST_MESSAGES = 3
_WARM_UP_BURST, _WARM_UP_SECONDS = 200, 5.0


@dataclass(slots=True)
class Sums:
    """Of all connections so far."""

    opened: int = 0
    closed: int = 0
    waiting: int = 0
    open: int = 0
    messages: int = 0
    bytes: int = 0
    slowest_ms: int = 0


@dataclass(slots=True)
class Scene:
    """The programs of all workloads. What goes between those that are enrolled carries `secret`, all else
    `open_marker`."""

    lab: Lab
    players: Players
    secret: bytes
    open_marker: bytes
    programs: dict[str, PodTraffic] = field(default_factory=dict)
    addresses: dict[str, Address] = field(default_factory=dict)
    _wanted: dict[tuple[str, str], int] = field(default_factory=dict)  # how many of those who come
    _numbers: Any = field(default_factory=itertools.count)
    _slow: list[tuple[float, str, str]] = field(default_factory=list)  # (until, pod, group)
    _read: dict[str, int] = field(default_factory=dict)  # pod -> incidents that were read

    def start(self) -> None:
        """Starts a program for every workload, each with a listener, over IPv4 and IPv6 in turn."""
        for number, pod in enumerate(self.lab.plan.pods):
            program = self.programs[pod.name] = PodTraffic(self.lab, pod.name)
            self.addresses[pod.name] = program.listen(str(pod.addresses[number % len(pod.addresses)]))

    def warm_up(self) -> None:
        """Many short connections and some slow readers: afterwards the cores hold what they keep for reuse."""
        for pair in (*self.players.steady, *self.players.open):
            self.burst(pair, _WARM_UP_BURST)
            self.slow_readers(pair, 5, 100_000, _WARM_UP_SECONDS)
        while self._slow:
            time.sleep(0.1)
            self.tend()
        if left := self.finish():
            raise ChaosError(f"{left} connections of the warm-up do not end in order")

    def open_all(self, count: int) -> None:
        """The long-lived connections: 70 % always secret, 15 % open, 15 % of those who come and go; waits for them."""
        steady, open_ = count * 70 // 100, count * 15 // 100
        coming: Pairs = self.players.coming
        shares = ((self.players.steady, steady), (self.players.open, open_), (coming, count - steady - open_))
        for pairs, share in shares:
            for number, pair in enumerate(pairs):
                part = len(range(number, share, len(pairs)))
                if pairs is coming:
                    self._wanted[pair] = part
                self._open(pair, f"long {pair[1]}", part, redial=pairs is not coming, over_ms=2000)
        deadline = time.monotonic() + _OPENING_SECONDS
        while (sums := self.sums()).open < count:
            if time.monotonic() > deadline:
                raise ChaosError(f"{sums.open} of {count} connections are open after {_OPENING_SECONDS:.0f} s")
            time.sleep(0.1)

    def top_up(self, pod: str) -> None:
        """Opens as many connections of a pod that is enrolled as were cut by crashes: at once, before it may leave."""
        for pair, wanted in self._wanted.items():
            if pod in pair:
                counts = self.programs[pair[0]].group(f"long {pair[1]}")
                # Those that are being opened are neither open nor over.
                alive = counts["opened"] - counts["closed"] - counts["cut"] - counts["failed"] - counts["wrong"]
                if alive < wanted:
                    self._open(pair, f"long {pair[1]}", wanted - alive)

    def burst(self, pair: tuple[str, str], count: int) -> None:
        """Short connections, within a second."""
        group = f"burst {next(self._numbers)}"
        self._open(pair, group, count, interval_ms=100, reply_ms=100, messages=_BURST_MESSAGES, over_ms=1000)

    def slow_readers(self, pair: tuple[str, str], count: int, rate: int, seconds: float) -> None:
        """Clients that ask for more than they read."""
        group = f"slow {next(self._numbers)}"
        self._open(pair, group, count, reply_ms=0, read_rate=rate)
        self._slow.append((time.monotonic() + seconds, pair[0], group))

    def tend(self) -> None:
        """Ends the slow readers whose time is over."""
        now = time.monotonic()
        over = [one for one in self._slow if one[0] <= now]
        self._slow = [one for one in self._slow if one[0] > now]
        for _, pod, group in over:
            self.programs[pod].finish(group)

    def incidents(self) -> list[dict[str, Any]]:
        """Those that are new, in the order of their time."""
        found = []
        for pod, program in self.programs.items():
            new = program.incidents(self._read.get(pod, 0))
            self._read[pod] = self._read.get(pod, 0) + len(new)
            found += new
        return sorted(found, key=lambda incident: incident["at"])

    def sums(self) -> Sums:
        """Of both ends of all connections: messages and bytes are those that arrived."""
        sums = Sums()
        for program in self.programs.values():
            counts = program.counts()
            sums.messages += counts["served"]["received"]
            sums.bytes += counts["served"]["bytes"]
            for group in counts["groups"].values():
                sums.opened += group["opened"]
                sums.closed += group["closed"]
                sums.open += group["open"]
                sums.waiting += group["opened"] - group["answered"] - group["failed"]
                sums.messages += group["received"]
                sums.bytes += group["bytes"]
                sums.slowest_ms = max(sums.slowest_ms, group["slowest_ms"])
        return sums

    def finish(self) -> int:
        """Ends all connections in order; how many there are that do not end."""
        for program in self.programs.values():
            for group in program.counts()["groups"]:
                program.finish(group)
        deadline = time.monotonic() + FINISH_SECONDS
        while True:
            sums = self.sums()
            served = sum(int(program.counts()["served"]["open"]) for program in self.programs.values())
            left = max(sums.open + sums.waiting, served)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.1)

    def close(self) -> None:
        """Ends the programs."""
        for program in self.programs.values():
            program.close()
        self.programs.clear()

    def _open(self, pair: tuple[str, str], group: str, count: int, **options: Any) -> None:
        client, server = pair
        secret = pair not in self.players.open
        marker = self.secret if secret else self.open_marker
        options = {"interval_ms": INTERVAL_MS, "reply_ms": INTERVAL_MS} | options
        try:
            self.programs[client].open(group, self.addresses[server], count, marker, **options)
        except RemoteError as error:
            raise ChaosError(str(error)) from error
