"""The node's run directory: what lies in it, and which file says what about a running node."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from nodeseal.capture import program_cache
from nodeseal.core import generations, lockfile

AGENT_LOCK = "agent.lock"
AGENT_PID = "agent.pid"
AGENT_SOCKET = "agent.sock"
CORE_LOG = generations.LOG_NAME
CAPTURE_JOURNAL = "capture.json"
PUBLICATION = "publication.json"
OWN_FILES = (AGENT_SOCKET, AGENT_PID, AGENT_LOCK, CORE_LOG, f"{CORE_LOG}.1", PUBLICATION, program_cache.FILE_NAME)
"""Beside those of the cores, see own_files()."""
_TRACES = (AGENT_SOCKET, AGENT_LOCK, CAPTURE_JOURNAL)


def has_node(run_dir: Path) -> bool:
    """Whether an agent or a core runs for this directory, or ran and left something."""
    try:
        return any((run_dir / name).exists() for name in _TRACES) or bool(generations.files(run_dir))
    except PermissionError:
        return True  # it is there, and not for this user to look into


def pids(run_dir: Path) -> list[int]:
    """The agent and the cores that run for this directory."""
    agent = lockfile.holder(run_dir / AGENT_LOCK)
    return [*([agent] if agent is not None else []), *generations.running(run_dir).values()]


def own_files(run_dir: Path) -> list[Path]:
    """The files of agents and cores in it, whether they are there or not."""
    return [*(run_dir / name for name in OWN_FILES), *generations.files(run_dir)]


def command(verb: str, run_dir: Path) -> str:
    """The command line that does something to the node of this run directory and to no other."""
    return f"nodeseal {verb} --run-dir {shlex.quote(str(run_dir))}"


def remember_publication(run_dir: Path, mesh: Path, node: str) -> None:
    """Notes where this node publishes, so that cleanup can withdraw it without a configuration. Raises OSError."""
    text = json.dumps({"directory": str(mesh), "node": node})
    draft = run_dir / (PUBLICATION + ".new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(run_dir / PUBLICATION)


def remembered_publication(run_dir: Path) -> tuple[Path, str] | None:
    """(mesh directory, node) as noted, or None when nothing is. Raises ValueError when the note is damaged."""
    try:
        value = json.loads((run_dir / PUBLICATION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    try:
        return Path(value["directory"]), str(value["node"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run_dir / PUBLICATION} is damaged ({error!r})") from None


def write_pid(path: Path) -> None:
    """Writes this process's id, whole or not at all. Raises OSError."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(f"{os.getpid()}\n", encoding="ascii")
    draft.replace(path)
