"""Which nodes of this machine a command is about, and asking their agents.

One machine may have several, as namespaces (a lab, or a cluster in one VM). Inside the network namespace of some of
them, these are meant. What only looks shows all if there are none; what changes something has to be told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import click

from nodeseal.api.client import AgentError
from nodeseal.cli.errors import UsageError
from nodeseal.cli.options import PATH, Callback, output_option
from nodeseal.cli.progress import waiting
from nodeseal.local import registry, run_directory

ENVIRONMENT = "NODESEAL_RUN_DIR"
DEFAULT = Path("/run/nodeseal")
LABS = Path("/run/nodeseal-lab")
_NAMED_MAX = 8


class OfNode(Protocol):
    """What an agent says of its node."""

    @property
    def node(self) -> str:
        """The node's name."""


A = TypeVar("A", bound=OfNode)


@dataclass(frozen=True, slots=True)
class Answer(Generic[A]):
    """What an agent says, by what its node is asked for and shown: `node` is the node's name, with the lab's before it
    ("lab/node1") when the nodes of several labs are there, or with the directory's that its run directory lies in when
    two have the same name."""

    node: str
    run_dir: str
    says: A


@dataclass(frozen=True, slots=True)
class Answers(Generic[A]):
    """The agents' answers in the order of their nodes, and one line for each that did not answer."""

    answers: list[Answer[A]]
    errors: list[str]

    def report_errors(self) -> int:
        """Prints the errors; the exit status."""
        for error in self.errors:
            print(f"nodeseal: {error}", file=sys.stderr)
        return 1 if self.errors else 0


def looking_options(callback: Callback) -> Callback:
    """--run-dir and -o, for a command that looks at running nodes."""
    where = f"the node of this network namespace, else {DEFAULT}, else all nodes of this machine"
    return _run_dir_option(where)(output_option(callback))


def changing_options(callback: Callback) -> Callback:
    """--run-dir or --all, and -o, for a command that changes running nodes: see nodes_to_change()."""
    every = click.option("--all", "everything", is_flag=True, help="Every node of this machine, those of others too.")
    return _run_dir_option("the node of this network namespace, if it is one")(every(output_option(callback)))


def _run_dir_option(default: str) -> Callable[[Callback], Callback]:
    return click.option(
        "--run-dir",
        type=PATH,
        metavar="DIR",
        help=f"The node's run directory, or its agent.sock (environment {ENVIRONMENT}); default: {default}.",
    )


def run_directories(given: Path | None) -> list[Path]:
    """The run directories that a command looks at; at least one."""
    named = _named(given)
    if named is not None:
        return [named]
    known = _known()
    here = [one.run_dir for one in known if one.here]
    default = [one.run_dir for one in known if one.run_dir == DEFAULT]
    return here or default or [one.run_dir for one in known] or [DEFAULT]


def nodes_to_change(verb: str, given: Path | None, *, everything: bool) -> list[Path]:
    """The run directories of the nodes that a command changes, which is called `verb`; at least one. `given`: that of
    --run-dir; `everything`: all nodes of this machine.

    Without either that is the one node of this network namespace. Nobody's else: on one machine may be several
    clusters, and several people. Raises UsageError with what to say instead: a line, and the commands below it.
    """
    if given is not None and everything:
        raise UsageError(f"--run-dir names one node and --all means every one: say 'nodeseal {verb}' with one of them")
    named = None if everything else _named(given)
    if named is not None:
        return [named]
    known = _known()
    if everything or not known:
        return [one.run_dir for one in known] or [DEFAULT]
    here = [one for one in known if one.here]
    # When nothing runs any more in the standard directory, it may be unknown where its node was.
    here = here or [one for one in known if one.here is None and one.run_dir == DEFAULT]
    if len(here) == 1:
        return [here[0].run_dir]
    if here:
        raise UsageError(f"{len(here)} nodes are in this network namespace; say which:\n{_commands(verb, here)}")
    which = "a node is" if len(known) == 1 else f"{len(known)} nodes are"
    raise UsageError(
        f"{which} on this machine, and none in this network namespace; say which:\n{_commands(verb, known)}"
    )


def _named(given: Path | None) -> Path | None:
    """The run directory that the user names."""
    variable = os.environ.get(ENVIRONMENT)
    if given is None and not variable:
        return None
    path = (given or Path(variable or "")).absolute()
    return path.parent if path.name == run_directory.AGENT_SOCKET else path


@dataclass(frozen=True, slots=True)
class _Known:
    """A node of this machine. `here`: whether it is in this network namespace; None when nothing tells."""

    run_dir: Path
    name: str
    here: bool | None


def _known() -> list[_Known]:
    """All nodes: that of the standard run directory, those of labs, then those that are registered."""
    notes = {os.path.realpath(one.run_dir): one for one in registry.registered()}
    standard = [DEFAULT] if run_directory.has_node(DEFAULT) else []
    standard += [path.parent for path in sorted(LABS.glob("*/*/agent.yaml")) if run_directory.has_node(path.parent)]
    found = {os.path.realpath(path): path for path in standard}
    found = found | {real: one.run_dir for real, one in notes.items() if real not in found}
    own = registry.own_namespace()
    nodes = []
    for real, path in found.items():
        note = notes.get(real)
        lab = path.parent.parent == LABS
        name = f"{path.parent.name}/{path.name}" if lab else note.node if note is not None else path.name
        nodes.append(_Known(path, name, _is_here(path, note, own)))
    return nodes


def _is_here(run_dir: Path, note: registry.Registered | None, own: int | None) -> bool | None:
    if note is not None and note.netns is not None and own is not None:
        return note.netns == own
    pids = run_directory.pids(run_dir)
    return _runs_here(pids) if pids else None


def _runs_here(pids: list[int]) -> bool:
    """Whether one of the node's processes is in the network namespace of this command."""
    try:
        own = Path("/proc/self/ns/net").stat().st_ino
        return any(Path(f"/proc/{pid}/ns/net").stat().st_ino == own for pid in pids)
    except OSError:
        return False  # it has just ended, or is not ours to look at


def _commands(verb: str, known: Sequence[_Known]) -> str:
    """What to say for each of them, and for all: a line each."""
    lines = [(run_directory.command(verb, one.run_dir), one.name) for one in known[:_NAMED_MAX]]
    if len(known) > _NAMED_MAX:
        lines.append(("nodeseal status", f"names {len(known) - _NAMED_MAX} more"))
    lines.append((f"nodeseal {verb} --all", "every node of this machine"))
    width = max(len(line) for line, _what in lines)
    return "\n".join(f"  {line:<{width}}  {what}" for line, what in lines)


def ask_all(directories: list[Path], ask: Callable[[Path], A]) -> Answers[A]:
    """Asks every node's agent, one after the other: `ask` is called with its run directory."""
    answers, errors = [], []
    for directory in directories:
        try:
            with waiting(f"waiting for the agent of {directory}"):
                answers.append((directory, ask(directory)))
        except AgentError as error:
            errors.append(str(error))
    names = _told_apart([(directory, says.node) for directory, says in answers])
    return Answers([Answer(name, str(path), says) for name, (path, says) in zip(names, answers, strict=True)], errors)


def _told_apart(nodes: Sequence[tuple[Path, str]]) -> list[str]:
    """The nodes' names; its lab, or whatever its run directory lies in, before one that is not enough by itself."""
    names = [name for _path, name in nodes]
    parents = [path.parent for path, _name in nodes]
    several = len(set(parents)) > 1
    return [
        f"{parent.name}/{name}" if several and (parent.parent == LABS or names.count(name) > 1) else name
        for parent, name in zip(parents, names, strict=True)
    ]
