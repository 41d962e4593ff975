"""A blocking client of the agent's local API, for the command line."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path
from typing import Any

from nodeseal.linux import lock_file
from nodeseal.local import generations, registry, run_directory

TIMEOUT_S = 20.0


class AgentError(Exception):
    """The agent refused a request or did not answer it; one line."""


class AgentGone(AgentError):
    """No agent runs for the run directory."""


def ask(run_dir: Path, operation: str, *, seconds: float = TIMEOUT_S) -> dict[str, Any]:
    """The answer to {"op": operation}, which is waited for so long. Raises AgentGone, AgentError."""
    path = run_dir / run_directory.AGENT_SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(json.dumps({"op": operation}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        raise AgentGone(_gone(run_dir)) from None
    except PermissionError:
        raise AgentError(f"the agent at {path} may be asked by root only") from None
    except OSError as error:
        raise AgentError(f"the agent at {path} does not answer: {error.strerror or error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        raise AgentError(f"the agent at {path} ended without an answer") from None
    if not isinstance(answer, dict) or answer.get("ok") is not True:
        error_text = answer.get("error") if isinstance(answer, dict) else None
        raise AgentError(str(error_text or f"the agent at {path} gave no proper answer"))
    return answer


def _gone(run_dir: Path) -> str:
    agent = lock_file.holder(run_dir / run_directory.AGENT_LOCK)
    if agent is not None:
        return f"the agent for {run_dir} (pid {agent}) is there and does not answer yet, or not any more; ask again"
    text = f"no agent runs for {run_dir}"
    cores = list(generations.running(run_dir).values())
    if cores:
        return (
            f"{text}, its core (pid {cores[-1]}) goes on; start the agent again with '{_start(run_dir)}', or end all "
            f"with '{run_directory.command('cleanup', run_dir)}'"
        )
    return f"{text}; start it with '{_start(run_dir)}'"


def _start(run_dir: Path) -> str:
    """The command that started the agent there last, if it is known."""
    note = registry.note_of(run_dir)
    return f"nodeseal agent --config {shlex.quote(str(note.config)) if note is not None else 'FILE'}"
