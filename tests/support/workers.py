"""How many worker threads the tests' cores have: `pytest --workers N`, otherwise what an agent chooses by itself.

The number goes into the configuration of every agent, unless a test gives that agent another one. The option is in
tests/conftest.py; it travels in the environment, so that a process which brings up a lab has it too: command.py.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from nodeseal.local.config import default_workers
from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import write_agent_config
from nodeseal_lab.plan import Node
from support.backend import backend_settings

ENVIRONMENT = "NODESEAL_TEST_WORKERS"
WORKERS_MAX = 64


def parse_workers(text: str) -> int:
    """A number of threads. Raises ValueError, with what was expected."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= WORKERS_MAX):
        raise ValueError(f"expected a number of threads from 1 to {WORKERS_MAX}, found '{text}'")
    return int(text)


def asked_workers() -> int | None:
    """The number that was asked for; None when the agents choose. Raises ValueError."""
    text = os.environ.get(ENVIRONMENT)
    return parse_workers(text) if text else None


def expected_workers() -> int:
    """The number that every core must have, but those that a test gave another."""
    return asked_workers() or default_workers()


def worker_settings() -> dict[str, Any]:
    """What an agent's configuration needs for it: {"workers": 4}, or nothing."""
    asked = asked_workers()
    return {} if asked is None else {"workers": asked}


def add_settings(config: Path, settings: dict[str, Any]) -> None:
    """Sets fields of a YAML file whose content is a mapping."""
    write_atomically(config, yaml.safe_dump(yaml.safe_load(config.read_text()) | settings))


def lab_settings(settings: dict[str, Any] | None = None) -> AbstractContextManager[object]:
    """While it is entered, labs that are brought up have the number of workers, the capture backend, and these
    settings, in their agents' configurations."""

    def write_config(path: Path, node: Node, **directories: Path) -> None:
        write_agent_config(path, node, **directories)
        add_settings(path, worker_settings() | backend_settings() | (settings or {}))

    return mock.patch("nodeseal_lab.lab.write_agent_config", write_config)


def nodeseal_command() -> list[str]:
    """How to run nodeseal's command line when it is to bring up a lab."""
    return [sys.executable, str(Path(__file__).with_name("command.py"))]
