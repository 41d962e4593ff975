"""Which keys may be different in two tables, by what they were made of. Pure.

A table of a large mesh is mostly that of a moment ago. Comparing the two object by object takes time for all of them;
each table knows instead which keys were put in or taken out on its way, for the last steps. Two tables that come of one
another, or of a common one, differ in those keys at most. It holds no former table: steps are numbers and keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable
from typing import NamedTuple

STEPS = 256
"""How many are known."""
KEYS = 4096
"""How many keys are known of all steps together, and of one."""

_numbers = itertools.count(1)


class _Step(NamedTuple):
    number: int
    """Of the table that it led to; no other table of this process has it."""
    keys: frozenset[Hashable]
    """What it has changed; those of the first step that is known are not looked at."""


class Lineage:
    """Of one table."""

    __slots__ = ("_size", "_steps")

    def __init__(self) -> None:
        """Of one that comes of no other."""
        self._steps: tuple[_Step, ...] = (_Step(next(_numbers), frozenset()),)
        self._size = 0

    def after(self, keys: Collection[Hashable]) -> Lineage:
        """Of a table that was made of this one by a change of these keys."""
        made = Lineage()
        if len(keys) > KEYS:
            return made
        step = _Step(made._steps[0].number, frozenset(keys))
        steps, size = self._steps, self._size + len(step.keys)
        while len(steps) >= STEPS or (size > KEYS and len(steps) > 1):
            size -= len(steps[1].keys) if len(steps) > 1 else 0
            steps = steps[1:]
        made._steps, made._size = (*steps, step), size
        return made

    def differing(self, other: Lineage) -> set[Hashable] | None:
        """The keys that may be different in the two tables; None: nothing is known of it."""
        mine, theirs = self._steps, other._steps
        numbers = {step.number for step in mine}
        common = next((step.number for step in reversed(theirs) if step.number in numbers), None)
        if common is None:
            return None
        found: set[Hashable] = set()
        for steps in (mine, theirs):
            for step in reversed(steps):
                if step.number == common:
                    break
                found |= step.keys
        return found
