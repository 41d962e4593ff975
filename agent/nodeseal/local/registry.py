"""Which nodes this machine has, wherever their run directories lie: a note of each agent that has started.

    /run/nodeseal-nodes/<digest of the run directory>.json   {"run_dir", "node", "config", "netns"}

For root alone, and gone with the machine, as the nodes are. A note outlives its agent, because what core and capture do
outlives it too; cleanup removes it. One whose run directory has no traces of a node any more is passed over. The agents
of a former version wrote none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from nodeseal.linux.namespace import network_namespace_cookie
from nodeseal.local import run_directory

DIRECTORY = Path("/run/nodeseal-nodes")
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Registered:
    """A node as its agent noted it. `config`: the agent's configuration file; `netns`: the kernel's number of the
    network namespace that the agent ran in, unique until reboot, None where the kernel tells none."""

    run_dir: Path
    node: str
    config: Path
    netns: int | None


def register(note: Registered) -> None:
    """Notes a node, in place of what was noted of its run directory; what is noted of no node any more goes. Raises
    OSError.
    """
    _tidy()
    path = _path(note.run_dir)
    value = {"run_dir": str(note.run_dir), "node": note.node, "config": str(note.config), "netns": note.netns}
    for attempt in range(_TRIES):
        DIRECTORY.mkdir(mode=0o700, exist_ok=True)
        try:
            draft = path.with_name(f"{path.name}.{os.getpid()}")
            draft.write_text(json.dumps(value), encoding="utf-8")
            draft.replace(path)
            return
        except FileNotFoundError:
            # The last node of the machine went at this moment, and the directory with it.
            if attempt == _TRIES - 1:
                raise


def forget(run_dir: Path) -> None:
    """Removes the note of a node, if there is one. Raises OSError."""
    _path(run_dir).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        DIRECTORY.rmdir()  # unless there are others


def registered() -> list[Registered]:
    """The nodes that are noted and have left a trace, by run directory. Empty for who may not read the notes."""
    found = []
    with contextlib.suppress(OSError):
        for path in DIRECTORY.glob("*.json"):
            one = _read(path)
            if one is not None and run_directory.has_node(one.run_dir):
                found.append(one)
    return sorted(found, key=lambda one: one.run_dir)


def note_of(run_dir: Path) -> Registered | None:
    """What is noted of one run directory."""
    return _read(_path(run_dir))


def own_namespace() -> int | None:
    """The number of the network namespace that this process is in; None where the kernel tells none."""
    try:
        return network_namespace_cookie()
    except OSError:
        return None


def _tidy() -> None:
    """Removes the notes of nodes that went without cleanup: their run directories were removed, say."""
    with contextlib.suppress(OSError):
        for path in DIRECTORY.glob("*.json"):
            one = _read(path)
            if one is not None and not run_directory.has_node(one.run_dir):
                path.unlink(missing_ok=True)


def _read(path: Path) -> Registered | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        netns = value["netns"]
        return Registered(
            Path(value["run_dir"]),
            str(value["node"]),
            Path(value["config"]),
            netns if isinstance(netns, int) else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it goes at this moment, is another user's, or not ours


def _path(run_dir: Path) -> Path:
    # However it is spelled: the agent has it from its configuration, a command from its user.
    return DIRECTORY / f"{hashlib.sha256(os.fsencode(os.path.realpath(run_dir))).hexdigest()[:16]}.json"
