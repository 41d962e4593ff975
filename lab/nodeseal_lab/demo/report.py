"""What the demo prints: steps, what was done, what was checked; and a check that does not hold."""

from __future__ import annotations

import sys
import textwrap
import time
from dataclasses import dataclass, field
from typing import TextIO

from nodeseal.contracts.output import DemoStep

WIDTH = 100
SHOWN_WIDTH = WIDTH - len("  | ")
"""Columns for the output of a command."""
_MARGIN = "    "


class CheckFailed(Exception):
    """A claim of the demo does not hold: which one, what was expected and what was seen."""

    def __init__(self, what: str, *, expected: object, seen: object) -> None:
        super().__init__(f"{what}: expected {expected}, seen {seen}")
        self.what, self.expected, self.seen = what, expected, seen


@dataclass(slots=True)
class Step:
    letter: str
    title: str
    began: float
    checks: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Report:
    """Prints as the demo goes (plain text; colour only on a terminal) and keeps what it proved.

    `quiet` prints nothing, for `-o json`."""

    def __init__(self, *, out: TextIO | None = None, quiet: bool = False) -> None:
        self._out = out or sys.stdout
        self._quiet = quiet
        self._colour = not quiet and self._out.isatty()
        self.steps: list[Step] = []

    def say(self, text: str = "") -> None:
        """A paragraph at the left margin."""
        self._print("\n".join(textwrap.wrap(text, WIDTH)) if text else "")

    def step(self, letter: str, title: str) -> None:
        self.finish_step()
        self.steps.append(Step(letter, title, time.monotonic()))
        self._print()
        self._print(self._styled(f"({letter}) {title}", "1"))

    def did(self, text: str) -> None:
        """What was done."""
        self._print(textwrap.fill(text, WIDTH, initial_indent=_MARGIN, subsequent_indent=_MARGIN))

    def show(self, text: str) -> None:
        """Output of a command, as it is."""
        for line in text.rstrip().splitlines():
            self._print(self._styled(f"  | {line}", "2"))

    def proved(self, text: str) -> None:
        """What was measured and holds."""
        self.steps[-1].checks.append(text)
        mark = self._styled("ok", "32")
        lines = textwrap.wrap(text, WIDTH - 8)
        self._print(f"    {mark}  {lines[0]}")
        for line in lines[1:]:
            self._print(f"        {line}")

    def check(self, what: str, holds: bool, *, expected: object, seen: object) -> None:
        """Raises CheckFailed unless it holds; prints nothing."""
        if not holds:
            raise CheckFailed(what, expected=expected, seen=seen)

    def failed(self, error: Exception) -> None:
        """Says which step failed and why."""
        where = f"({self.steps[-1].letter}) {self.steps[-1].title}" if self.steps else "before the first step"
        self._print()
        self._print(self._styled(f"FAILED in {where}", "1;31"))
        if isinstance(error, CheckFailed):
            for label, value in (("check:   ", error.what), ("expected:", error.expected), ("seen:    ", error.seen)):
                self._print(
                    textwrap.fill(str(value), WIDTH, initial_indent=f"    {label} ", subsequent_indent=" " * 14)
                )
        else:
            self.did(str(error) or type(error).__name__)

    def finish_step(self) -> None:
        if self.steps and not self.steps[-1].seconds:
            self.steps[-1].seconds = time.monotonic() - self.steps[-1].began

    def rows(self) -> list[DemoStep]:
        """The steps for a script."""
        return [
            DemoStep(step=step.letter, title=step.title, seconds=round(step.seconds, 2), checks=step.checks)
            for step in self.steps
        ]

    def _styled(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def _print(self, text: str = "") -> None:
        if not self._quiet:
            print(text, file=self._out, flush=True)
