"""One agent per node and mesh state: the claim to publish for a node.

Two agents of one node would overwrite each other's publication, and a peer that reads the wrong one sends plaintext. So
an agent holds a lock on `enrolled/.<node>.claim` in the mesh directory as long as it runs. The file's text is its run
directory, and outlives it: while a core or capture of that run directory is in place, the node is still its own.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nodeseal.agent import rundir
from nodeseal.core.lockfile import AlreadyLocked, LockFile
from nodeseal.sources.publications import ENROLLED


class ClaimError(Exception):
    """The node belongs to another agent, or the claim cannot be written; one line."""


class Claim:
    """The right to publish for `node`, held until release() or the process's end."""

    def __init__(self, mesh: Path, node: str, run_dir: Path) -> None:
        """Raises ClaimError."""
        path = _path(mesh, node)
        self._existed, self._directory_existed = path.exists(), path.parent.exists()
        try:
            path.parent.mkdir(exist_ok=True)
            self._lock = LockFile(path, str(run_dir))
        except AlreadyLocked as error:
            raise ClaimError(
                f"another agent (pid {error.pid}) runs for the node {node} of the mesh state {mesh}; stop it first, or "
                "give this one the name of its own node"
            ) from None
        except OSError as error:
            raise ClaimError(f"cannot write {path}: {error.strerror or error}") from None
        owner = self._lock.previous
        if owner and Path(owner) != run_dir and rundir.has_node(Path(owner)):
            self._lock.write(owner)
            self._lock.release()
            raise ClaimError(
                f"the node {node} of the mesh state {mesh} is in use by the run directory {owner}: start the agent "
                f"with that one, or run '{rundir.command('cleanup', Path(owner))}' first"
            )

    def release(self, *, undo: bool = False) -> None:
        """The run directory stays noted; with `undo`, nothing is left that was not there before."""
        self._lock.release(remove=undo and not self._existed)
        if undo and not self._directory_existed:
            with contextlib.suppress(OSError):
                self._lock.path.parent.rmdir()


def owns(run_dir: Path, mesh: Path, node: str) -> bool:
    """Whether the publication of `node` is this run directory's: nobody else has claimed it since."""
    try:
        return Path(_path(mesh, node).read_text(encoding="utf-8").rstrip("\n")) == run_dir
    except FileNotFoundError:
        return True


def forget(mesh: Path, node: str) -> None:
    """Removes the note. Raises OSError."""
    _path(mesh, node).unlink(missing_ok=True)


def _path(mesh: Path, node: str) -> Path:
    return mesh / ENROLLED / f".{node}.claim"
