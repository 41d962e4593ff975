"""What a case saw: plain data, compared key for key, with a tolerance for times."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

SLACK = 0.3
"""Seconds by which two times may differ whatever they are: two machines that are busy differ by as much."""
MULTIPLE = 3.0
"""How many times the shorter the longer may be."""

Observation = Mapping[str, Any]
"""By a name for what was observed: texts, numbers, Seconds, and lists of them."""


class Seconds(float):
    """A duration: equal to another that is near."""

    def near(self, other: float) -> bool:
        """Whether the two may come of the same cause."""
        return abs(self - other) <= SLACK or max(self, other) <= MULTIPLE * min(self, other)

    def __repr__(self) -> str:
        return f"{float(self):.3f} s"


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that the two worlds did not see alike; `nothing` where one had no such key."""

    key: str
    enrolled: Any
    plain: Any

    nothing = "nothing of the kind"

    @property
    def of_time(self) -> bool:
        """Whether it may be chance: on another run it may be gone."""
        return isinstance(self.enrolled, Seconds) and isinstance(self.plain, Seconds)

    def __str__(self) -> str:
        return f"{self.key}: with nodeseal {self.enrolled!r}, without {self.plain!r}"


def compare(enrolled: Observation, plain: Observation) -> list[Difference]:
    """What differs, in the order in which it was observed."""
    found = []
    for key in [*plain, *(key for key in enrolled if key not in plain)]:
        one, other = (seen.get(key, Difference.nothing) for seen in (enrolled, plain))
        if isinstance(one, Seconds) and isinstance(other, Seconds):
            if not one.near(other):
                found.append(Difference(key, one, other))
        elif one != other:
            found.append(Difference(key, one, other))
    return found


def outcome(action: Callable[[], object]) -> str:
    """How a call ended, as an application tells it: "ok", or the errno's name; "timed out" if a time limit of its own
    ended it."""
    try:
        action()
    except TimeoutError as error:
        return named(error.errno) if error.errno else "timed out"
    except OSError as error:
        return named(error.errno)
    return "ok"


def named(number: int | None) -> str:
    """An errno in words: "ECONNREFUSED", "ok" for 0."""
    return "ok" if number == 0 else errno.errorcode.get(number or -1, f"error {number}")


def timed(action: Callable[[], object]) -> tuple[str, Seconds]:
    """The outcome of a call, and how long it took."""
    start = time.monotonic()
    result = outcome(action)
    return result, Seconds(time.monotonic() - start)


@contextlib.contextmanager
def clock() -> Iterator[Callable[[], Seconds]]:
    """What it gives tells how long it is since it was entered."""
    start = time.monotonic()
    yield lambda: Seconds(time.monotonic() - start)


def received(receive: Callable[[], bytes]) -> str:
    """What a receiving call gave: "4 bytes", "end", or the errno's name."""
    data = b""

    def body() -> None:
        nonlocal data
        data = receive()

    result = outcome(body)
    if result != "ok":
        return result
    return f"{len(data)} bytes" if data else "end"
