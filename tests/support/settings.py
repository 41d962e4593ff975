"""The configuration of the agents of labs: what the run was asked for (support/options.py), then what a test wants."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import write_agent_config
from nodeseal_lab.plan import Node
from support.options import agent_settings


def add_settings(config: Path, settings: dict[str, Any]) -> None:
    """Sets fields of a YAML file whose content is a mapping."""
    write_atomically(config, yaml.safe_dump(yaml.safe_load(config.read_text()) | settings))


def lab_settings(settings: dict[str, Any] | None = None) -> AbstractContextManager[object]:
    """While it is entered, labs that are brought up have what was asked for, and these settings, in their agents'
    configurations."""

    def write_config(path: Path, node: Node, **settings_of_lab: Any) -> None:
        write_agent_config(path, node, **settings_of_lab)
        add_settings(path, agent_settings() | (settings or {}))

    return mock.patch("nodeseal_lab.lab.write_agent_config", write_config)
