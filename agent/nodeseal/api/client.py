"""A blocking client of the agent's local API, for the command line."""

from __future__ import annotations

import contextlib
import shlex
import socket
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import h11
import msgspec

from nodeseal import __version__
from nodeseal.contracts.api import CONNECTIONS, PAGE_MAX, Operation
from nodeseal.contracts.connections import ConnectionFilter, ConnectionRow, Connections
from nodeseal.contracts.rows import Failure, Parameters, Row
from nodeseal.linux import lock_file
from nodeseal.local import generations, registry, run_directory

TIMEOUT_S = 20.0
_READ = 256 * 1024
_ANSWER_MAX = 256 * 1024 * 1024

P = TypeVar("P", bound=Parameters)
A = TypeVar("A", bound=Row)


class AgentError(Exception):
    """The agent refused a request or did not answer it; one line."""


class AgentGone(AgentError):
    """No agent runs for the run directory."""


class UnknownOperation(AgentError):
    """The agent is of a version that does not know what is asked."""


class _OtherVersionError(Exception):
    """The agent does not know what is asked."""


def ask(run_dir: Path, operation: Operation[P, A], parameters: P | None = None, *, seconds: float = TIMEOUT_S) -> A:
    """The agent's answer; it may be silent for so long. Raises AgentGone, AgentError."""
    path = run_dir / run_directory.AGENT_SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            status, body = _exchange(connection, operation, parameters)
        if status == 200:
            return msgspec.json.decode(body, type=operation.answer)
        if status == 404:
            raise _OtherVersionError
        raise AgentError(msgspec.json.decode(body, type=Failure).detail)
    except (FileNotFoundError, ConnectionRefusedError):
        raise AgentGone(_gone(run_dir)) from None
    except (ConnectionResetError, h11.RemoteProtocolError):
        raise AgentError(f"the agent at {path} ended without an answer") from None
    except PermissionError:
        raise AgentError(f"the agent at {path} may be asked by root only") from None
    except OSError as error:
        raise AgentError(f"the agent at {path} does not answer: {error.strerror or error}") from None
    except _OtherVersionError:
        text = f"is of another version than this command ({__version__}); start the agent anew"
        raise UnknownOperation(f"the agent at {path} {text}") from None
    except msgspec.MsgspecError:
        raise AgentError(f"the agent at {path} gave no proper answer") from None


def ask_connections(run_dir: Path, wanted: ConnectionFilter, *, seconds: float = TIMEOUT_S) -> Connections:
    """All pages as one. Raises AgentGone, AgentError."""
    connections: list[ConnectionRow] = []
    errors: list[str] = []
    wanted = msgspec.structs.replace(wanted, limit=PAGE_MAX)
    while True:
        page = ask(run_dir, CONNECTIONS, wanted, seconds=seconds)
        connections += page.connections
        errors += page.errors
        if page.next is None:
            return msgspec.structs.replace(page, connections=connections, errors=errors)
        wanted = msgspec.structs.replace(wanted, after=page.next)


def _exchange(connection: socket.socket, operation: Operation[P, A], parameters: P | None) -> tuple[int, bytes]:
    """(status, body) of the answer."""
    http = h11.Connection(h11.CLIENT)
    headers = [("Host", "node"), ("User-Agent", f"nodeseal/{__version__}"), ("Connection", "close")]
    request = h11.Request(method=operation.method, target=_target(operation, parameters), headers=headers)
    with contextlib.suppress(BrokenPipeError):  # an agent that refuses a client does not read what it wants
        connection.sendall((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    status, parts, begun = 0, [], False
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = connection.recv(_READ)
            if not begun and data[:1] == b"{":
                raise _OtherVersionError  # it speaks JSON lines
            begun = True
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            parts.append(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return status, b"".join(parts)
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("no answer")


def _target(operation: Operation[P, A], parameters: P | None) -> str:
    """The path, with those parameters that are not as they are by themselves."""
    texts = {}
    for field in msgspec.structs.fields(operation.parameters) if parameters is not None else ():
        value = getattr(parameters, field.name)
        if value != field.default:
            texts[field.encode_name] = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{operation.path}?{urlencode(texts)}" if texts else operation.path


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
