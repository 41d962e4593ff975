"""Waiting for what must happen: tests wait for conditions, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which what should have happened has not: only a test that fails waits for so long."""


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """Asks again and again until the condition holds; its value. Fails the test, naming `what`, when it never does."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:.0f} s: {what}")
        time.sleep(0.01)
