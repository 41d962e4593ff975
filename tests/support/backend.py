"""Which capture backend the tests' agents use: `pytest --backend NAME`, ebpf otherwise.

As with the number of workers (workers.py), the choice travels in the environment and goes into the configuration of
every agent, unless a test gives that agent another one.
"""

from __future__ import annotations

import os
from typing import Any

from nodeseal.capture.backends.backend import Choice

ENVIRONMENT = "NODESEAL_TEST_CAPTURE"
NAMES = (Choice.EBPF.value, Choice.IPTABLES.value)


def parse_backend(text: str) -> Choice:
    """A backend by its name. Raises ValueError, with what was expected."""
    if text not in NAMES:
        raise ValueError(f"expected {' or '.join(NAMES)}, found '{text}'")
    return Choice(text)


def asked_backend() -> Choice:
    """The one that was asked for; ebpf, which the machine must then be capable of, when none was. Raises ValueError."""
    return parse_backend(os.environ.get(ENVIRONMENT) or Choice.EBPF.value)


def backend_settings() -> dict[str, Any]:
    """What an agent's configuration needs for it."""
    return {"capture": asked_backend().value}
