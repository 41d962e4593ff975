"""What a run of the tests may be asked for: worker threads, a capture backend, other programs' rules on the nodes.

Each is an option of pytest and a variable of the environment, in which it travels, so that a process which brings up a
lab (support/command.py) has it too. It goes into the configuration of every agent, unless a test gives that agent
something else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pytest

from nodeseal.capture.backends.backend import Choice
from nodeseal.local.config import default_workers
from nodeseal_lab.plan import NODE_RULES as KINDS

T = TypeVar("T")
WORKERS_MAX = 64
BACKENDS = (Choice.EBPF.value, Choice.IPTABLES.value)


@dataclass(frozen=True, slots=True)
class Option(Generic[T]):
    """One of them; `parse` raises ValueError, with what was expected."""

    flag: str
    environment: str
    metavar: str
    help: str
    default: T
    parse: Callable[[str], T]

    def asked(self) -> T:
        """What this run was asked for, or the default. Raises ValueError."""
        text = os.environ.get(self.environment)
        return self.parse(text) if text else self.default

    def add(self, parser: pytest.Parser) -> None:
        """To pytest's command line."""
        parser.addoption(self.flag, metavar=self.metavar, help=f"{self.help} (default: ${self.environment})")

    def take(self, config: pytest.Config) -> None:
        """From the command line into the environment, or what the environment has. Raises UsageError."""
        text = config.getoption(self.flag)
        try:
            if text is not None:
                self.parse(text)
                os.environ[self.environment] = text
            self.asked()
        except ValueError as error:
            raise pytest.UsageError(f"{self.environment if text is None else self.flag}: {error}") from error


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= WORKERS_MAX):
        raise ValueError(f"expected a number of threads from 1 to {WORKERS_MAX}, found '{text}'")
    return int(text)


def _backend(text: str) -> Choice:
    if text not in BACKENDS:
        raise ValueError(f"expected {' or '.join(BACKENDS)}, found '{text}'")
    return Choice(text)


def _kind(text: str) -> str:
    if text not in KINDS:
        raise ValueError(f"expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, found '{text}'")
    return text


WORKERS: Option[int | None] = Option(
    "--workers",
    "NODESEAL_TEST_WORKERS",
    "N",
    f"worker threads of every core in netns and interop, 1 to {WORKERS_MAX}, otherwise what an agent chooses",
    None,
    _number,
)
BACKEND: Option[Choice] = Option(
    "--backend",
    "NODESEAL_TEST_CAPTURE",
    "NAME",
    f"what captures in netns and interop, {' or '.join(BACKENDS)}, otherwise {Choice.EBPF.value}",
    Choice.EBPF,
    _backend,
)
NODE_RULES: Option[str] = Option(
    "--node-rules",
    "NODESEAL_TEST_NODE_RULES",
    "KIND",
    f"other programs' netfilter rules on the nodes of netns' and interop's labs: {', '.join(KINDS)}, otherwise none",
    "",
    _kind,
)
ALL = (WORKERS, BACKEND, NODE_RULES)


def expected_workers() -> int:
    """How many worker threads every core must have, but those that a test gave another number."""
    return WORKERS.asked() or default_workers()


def agent_settings() -> dict[str, Any]:
    """What an agent's configuration needs for it: {"capture": "ebpf", "workers": 4}; "workers" only if asked for."""
    workers = WORKERS.asked()
    return {"capture": BACKEND.asked().value} | ({} if workers is None else {"workers": workers})
