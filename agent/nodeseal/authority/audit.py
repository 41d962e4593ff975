"""The audit log: one JSON object a line, for every certificate and every refusal, with who, what and the outcome.

A flood must not fill the disk. What one asker is refused for the same reason is written once; what follows within ten
seconds is counted, and a line of its own says how many there were. Strangers are told apart by what they pay for, an
address or an IPv6 /64, and fewer of them than nodes: who has a botnet writes no more. What is issued is bounded by the
rates, and every certificate has its line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

WINDOW_S = 10.0
_NODES = 1_000
"""Most nodes that are told apart in one window; the others are one."""
_STRANGERS = 100
"""The same of strangers."""
_OTHERS = "others"


class Sink(Protocol):
    """Where lines go."""

    def __call__(self, line: str) -> None:
        """Writes one, without its end."""


@dataclass(slots=True)
class _Repeated:
    since: float
    count: int = 0
    line: dict[str, object] = field(default_factory=dict)


class Audit:
    """Belongs to the event loop."""

    def __init__(self, sink: Sink, now: Callable[[], datetime], clock: Callable[[], float]) -> None:
        """`now`: the wall clock; `clock`: seconds, monotonic."""
        self._sink = sink
        self._now = now
        self._clock = clock
        self._windows: dict[tuple[str, str, bool], _Repeated] = {}
        self._apart = {True: 0, False: 0}
        """How many windows strangers have, and how many nodes."""

    def issued(self, **what: object) -> None:
        """A certificate was made, and recorded. It is given away after this, if its asker is still there."""
        self._write({"outcome": "issued", **what})

    def refused(self, word: str, who: str, stranger: str | None = None, **what: object) -> None:
        """`who`: the node, or the address of a stranger. `stranger`: by what that one is told from others; None for a
        node."""
        self.settle()
        strange = stranger is not None
        line = {"outcome": "refused", "word": word, "who": who, **what}
        key = (word, stranger or who, strange)
        if key not in self._windows and self._apart[strange] >= (_STRANGERS if strange else _NODES):
            key, line = (word, _OTHERS, strange), {"outcome": "refused", "word": word, "who": _OTHERS}
        window = self._windows.get(key)
        if window is None:
            self._windows[key] = _Repeated(self._clock(), line=line)
            self._apart[strange] += 1
            self._write(line)
        else:
            window.count += 1

    def settle(self, *, all_of_them: bool = False) -> None:
        """Says of each window that has ended how many more there were."""
        end = self._clock() - WINDOW_S
        while self._windows:
            key = next(iter(self._windows))  # the oldest
            window = self._windows[key]
            if window.since > end and not all_of_them:
                return
            del self._windows[key]
            self._apart[key[2]] -= 1
            if window.count:
                self._write({**window.line, "repeated": window.count})

    def _write(self, line: dict[str, object]) -> None:
        at = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
        self._sink(json.dumps({"time": at, **{name: value for name, value in line.items() if value is not None}}))
