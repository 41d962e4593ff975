"""Which of the connections that ended may have ended: those that went through a core that was killed. Pure.

A connection touches the nodes of both its ends. When a core is killed, what went through it may be lost: known to be so
of the connections that were dialled on its node, taken to be so of those that were dialled to it. When a node has
neither agent nor core, what begins there may fail as well, until both are back: enrolled workloads fail then, rather
than talk in plaintext. Nothing else may be cut, and nothing at all may be lost or repeated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SERVER_GRACE = 5.0
"""Seconds by which the server may see a connection begin later than its client, over a link that loses much."""
ENDING_SECONDS = 10.0
"""For how long a process that is killed may take to end, until it is known."""
LISTING_SECONDS = 1.0
"""How long before the kill a connection may have begun and not be among those that were listed."""


@dataclass(slots=True)
class Crash:
    """Of a node's core, or of its agent and core.

    `until`: when the core had ended, or both were back; what began later may not fail; None: not yet. `carried`: the
    near ends ("10.77.1.10:40000") of the connections dialled on the node that the core carried; None: not known, it may
    have been any."""

    node: str
    at: float
    until: float | None
    carried: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """What must not happen, and did. `at`: CLOCK_MONOTONIC."""

    at: float
    what: str
    detail: str


@dataclass(slots=True)
class Ledger:
    """Counts connections, each once, whichever of its ends tells of it. `nodes`: address -> the node that it is on."""

    nodes: dict[str, str]
    crashes: list[Crash] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)
    """By what happened: "cut", "failed"."""
    _seen: dict[int, bool] = field(default_factory=dict)  # connection -> whether it was excused

    def core_killed(self, node: str, at: float, carried: frozenset[str] | None) -> Crash:
        """Just before it is: the agent runs, and starts another. `until` is to be set once the process has ended: until
        then it may have taken connections."""
        crash = Crash(node, at, at + ENDING_SECONDS, carried)
        self.crashes.append(crash)
        return crash

    def nothing_runs(self, node: str, at: float) -> None:
        """Just before it is so, until `runs_again`."""
        self.crashes.append(Crash(node, at, None))

    def down(self) -> set[str]:
        """The nodes where nothing runs."""
        return {crash.node for crash in self.crashes if crash.until is None}

    def runs_again(self, node: str, at: float) -> None:
        """Agent and core are back."""
        for crash in self.crashes:
            if crash.node == node and crash.until is None:
                crash.until = at

    def enter(self, incident: dict[str, Any]) -> None:
        """An incident of support.traffic."""
        what, number = incident["what"], incident["connection"]
        excused = what != "wrong" and any(self._may_end(crash, incident) for crash in self.crashes)
        if number in self._seen:
            # The other end has told already. An end that has no excuse is one, whatever the other says.
            if self._seen[number] and not excused:
                self._seen[number] = False
                self._violation(incident)
            return
        self._seen[number] = excused
        if excused:
            self.excused[what] += 1
        else:
            self._violation(incident)

    def count(self, *whats: str) -> int:
        """How many violations of these kinds."""
        return sum(violation.what in whats for violation in self.violations)

    def add(self, at: float, what: str, detail: str) -> None:
        """A violation that is not a connection's."""
        self.violations.append(Violation(at, what, detail))

    def first(self) -> Violation | None:
        """The earliest violation."""
        return min(self.violations, key=lambda violation: violation.at, default=None)

    def _violation(self, incident: dict[str, Any]) -> None:
        side = f"{incident['side']} {incident['local']}, other end {incident['remote']}"
        text = f"connection {incident['connection']:x} ({incident['group'] or 'served'}, {side}): {incident['detail']}"
        self.add(incident["at"], incident["what"], text)

    def _may_end(self, crash: Crash, incident: dict[str, Any]) -> bool:
        is_client = incident["side"] == "client"
        near, far = (self._node_of(incident[end]) for end in ("local", "remote"))
        if crash.node not in (near, far) or incident["at"] < crash.at:
            return False
        if crash.until is None:
            return True
        if is_client and crash.node != far and crash.carried is not None:
            listed = incident["began"] < crash.at - LISTING_SECONDS
            if listed and incident["local"] not in crash.carried:
                return False
        return bool(incident["began"] <= crash.until + (0.0 if is_client else SERVER_GRACE))

    def _node_of(self, end: str) -> str | None:
        return self.nodes.get(end.rpartition(":")[0].strip("[]"))
