"""What happens when, from a seed. Pure: the same seed and length give the same schedule, on any machine.

At first every kind of event comes once, in an order of the seed's; then what the dice say. What is begun is ended:
a workload that is un-enrolled is enrolled again some seconds later, a strict one becomes permissive.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from chaos.impairment import Impairment

FIRST_AT = 5.0
"""Seconds for which nothing happens but traffic."""
LAST_BEFORE_END = 8.0


class Kind(StrEnum):
    """The events."""

    AGENT_KILL = "agent-kill"
    AGENT_UPGRADE = "agent-upgrade"
    CORE_KILL = "core-kill"
    BOTH_KILL = "agent-and-core-kill"
    CORE_UPGRADE = "core-upgrade"
    CORE_UPGRADE_TWICE = "core-upgrade-twice"
    UNENROL = "unenrol"
    ENROL = "enrol"
    STRICT = "strict"
    PERMISSIVE = "permissive"
    MESH_EDIT = "mesh-edit"
    MESH_MISTAKE = "mesh-mistake"
    CA_RENEWAL = "ca-renewal"
    LINK_CHANGE = "link-change"
    LINK_DOWN = "link-down"
    BURST = "burst"
    SLOW_READERS = "slow-readers"


_WEIGHTS = {
    Kind.AGENT_KILL: 8,
    Kind.AGENT_UPGRADE: 6,
    Kind.CORE_KILL: 3,
    Kind.BOTH_KILL: 2,
    Kind.CORE_UPGRADE: 6,
    Kind.CORE_UPGRADE_TWICE: 4,
    Kind.UNENROL: 8,
    Kind.STRICT: 5,
    Kind.MESH_EDIT: 4,
    Kind.MESH_MISTAKE: 4,
    Kind.CA_RENEWAL: 3,
    Kind.LINK_CHANGE: 8,
    Kind.LINK_DOWN: 4,
    Kind.BURST: 12,
    Kind.SLOW_READERS: 5,
}
_ENDED_BY = {Kind.UNENROL: Kind.ENROL, Kind.STRICT: Kind.PERMISSIVE}
_ON_A_NODE = frozenset(
    {
        Kind.AGENT_KILL,
        Kind.AGENT_UPGRADE,
        Kind.CORE_KILL,
        Kind.BOTH_KILL,
        Kind.CORE_UPGRADE,
        Kind.CORE_UPGRADE_TWICE,
        Kind.LINK_DOWN,
    }
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Whom events may happen to. `comers` are un-enrolled and enrolled; `strict` are talked to by enrolled pods alone;
    `bursts` are the pairs (client, server) of short connections."""

    nodes: Sequence[str]
    comers: Sequence[str]
    strict: Sequence[str]
    bursts: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Event:
    """`at`: seconds since the traffic began. `subject`: a node, a pod, or a pair "client server"."""

    at: float
    kind: Kind
    subject: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        details = ", ".join(f"{name} {value}" for name, value in self.details.items())
        return " ".join(part for part in (self.kind.value, self.subject, details) if part)


def make_schedule(seed: int, seconds: float, cast: Cast) -> list[Event]:
    """The events of a run, in order."""
    dice = random.Random(seed)  # noqa: S311
    first = list(_WEIGHTS)
    dice.shuffle(first)
    busy: dict[str, float] = {}  # pod -> until when something that was begun with it is not ended
    events: list[Event] = []
    at = FIRST_AT
    while at < seconds - LAST_BEFORE_END:
        kind = first.pop() if first else dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        event = _event(dice, at, kind, cast, busy)
        if event is not None:
            events.append(event)
            if kind in _ENDED_BY:
                ends = min(at + dice.uniform(2.0, 10.0), seconds - LAST_BEFORE_END)
                busy[event.subject] = ends
                events.append(Event(round(ends, 2), _ENDED_BY[kind], event.subject))
        at = round(at + dice.uniform(0.5, 4.5), 2)
    return sorted(events, key=lambda event: event.at)


def _event(dice: random.Random, at: float, kind: Kind, cast: Cast, busy: dict[str, float]) -> Event | None:
    """None: nobody is free for it."""
    if kind in _ON_A_NODE:
        return Event(at, kind, dice.choice(list(cast.nodes)))
    if kind in _ENDED_BY:
        pods = cast.comers if kind is Kind.UNENROL else cast.strict
        free = [pod for pod in pods if busy.get(pod, 0.0) < at]
        return Event(at, kind, dice.choice(free)) if free else None
    if kind is Kind.LINK_CHANGE:
        return Event(at, kind, details={"impairment": _impairment(dice)})
    if kind is Kind.BURST:
        return Event(at, kind, " ".join(dice.choice(list(cast.bursts))), {"count": dice.choice((20, 50, 100, 200))})
    if kind is Kind.SLOW_READERS:
        details = {"count": dice.randint(1, 5), "rate": dice.choice((20_000, 50_000, 100_000))}
        return Event(at, kind, " ".join(dice.choice(list(cast.bursts))), details | {"seconds": dice.randint(5, 15)})
    if kind is Kind.MESH_EDIT:
        return Event(at, kind, details={"workloads": dice.randint(0, 200)})
    return Event(at, kind)


def _impairment(dice: random.Random) -> Impairment:
    """A quarter of them clean. More than this may cut: see docs/when-parts-die.md."""
    if dice.random() < 0.25:
        return Impairment()
    return Impairment(
        loss=round(dice.uniform(0.0, 0.03), 4),
        delay_ms=round(dice.uniform(0.0, 40.0), 1),
        jitter_ms=round(dice.uniform(0.0, 15.0), 1),
        reorder=round(dice.uniform(0.0, 0.03), 4),
        duplicate=round(dice.uniform(0.0, 0.01), 4),
    )
