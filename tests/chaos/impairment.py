"""What a bad link does to each frame: whether it arrives, when, and how often. Pure: the clock and the dice are given.

Frames of one direction stay in order unless they are among those that are reordered: those come later than the frames
behind them. Jitter alone reorders nothing, as in a queue that is longer at times.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

REORDER_GAP = 0.005
"""Seconds, at least, that a frame which is reordered comes after its turn."""


@dataclass(frozen=True, slots=True)
class Impairment:
    """Of each direction: shares are of 1, times are milliseconds."""

    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0

    def __str__(self) -> str:
        if self == Impairment():
            return "clean"
        return (
            f"loss {self.loss:.1%}, delay {self.delay_ms:.0f} ms + {self.jitter_ms:.0f} ms, "
            f"reordered {self.reorder:.1%}, duplicated {self.duplicate:.1%}"
        )

    def to_json(self) -> dict[str, float]:
        """The fields."""
        return asdict(self)


class Direction:
    """One direction of a link: gives every frame the times at which it is delivered."""

    def __init__(self, seed: int) -> None:
        self.impairment = Impairment()
        self._dice = random.Random(seed)  # noqa: S311
        self._turn = 0.0  # when the frame before is delivered

    def deliveries(self, now: float) -> tuple[float, ...]:
        """When a frame that arrives now is delivered: never, once, or twice."""
        is_bad = self.impairment
        dice = self._dice.random
        if is_bad.loss and dice() < is_bad.loss:
            return ()
        due = now + (is_bad.delay_ms + (is_bad.jitter_ms * dice() if is_bad.jitter_ms else 0.0)) / 1000
        if is_bad.reorder and dice() < is_bad.reorder:
            due = max(due, self._turn) + max(is_bad.jitter_ms / 1000, REORDER_GAP)
        else:
            # Also when the impairment has become less: what is on its way stays in front.
            due = self._turn = max(due, self._turn)
        if is_bad.duplicate and dice() < is_bad.duplicate:
            return (due, due)
        return (due,)
