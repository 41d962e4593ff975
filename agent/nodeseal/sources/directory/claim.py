"""One agent per node and mesh state: the claim to publish for a node.

Two agents of one node would overwrite each other's publication, and a peer that reads the wrong one sends plaintext. So
an agent holds a lock on `enrolled/.<node>.claim` in the mesh directory as long as it runs. The file's text is its run
directory, and outlives it: while a core or capture of that run directory is in place, the node is still its own.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nodeseal.linux import lock_file
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.local import run_directory
from nodeseal.sources.directory.publications import ENROLLED, path_of, withdraw
from nodeseal.sources.source import ClaimError, PublicationError


class DirectoryClaim:
    """The right to publish for `node`, held until release() or the process's end."""

    def __init__(self, mesh: Path, node: str, run_dir: Path) -> None:
        """Raises ClaimError."""
        path = _path(mesh, node)
        self._existed, self._directory_existed = path.exists(), path.parent.exists()
        try:
            path.parent.mkdir(exist_ok=True)
            self._lock = LockFile(path, str(run_dir))
        except AlreadyLocked as error:
            raise ClaimError(_runs(mesh, node, error.pid)) from None
        except OSError as error:
            raise ClaimError(f"cannot write {path}: {error.strerror or error}") from None
        owner = self._lock.previous
        if owner and Path(owner) != run_dir and run_directory.has_node(Path(owner)):
            self._lock.write(owner)
            self._lock.release()
            raise ClaimError(_in_use(mesh, node, owner))

    async def release(self, *, undo: bool = False) -> None:
        """See Claim.release. The run directory stays noted otherwise."""
        self._lock.release(remove=undo and not self._existed)
        if undo and not self._directory_existed:
            with contextlib.suppress(OSError):
                self._lock.path.parent.rmdir()


def refusal(mesh: Path, node: str, run_dir: Path) -> str | None:
    """Why an agent with this run directory would not get the claim, one line; None when it would."""
    path = _path(mesh, node)
    try:
        owner = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, ValueError):
        return None
    if not owner or Path(owner) == run_dir:
        return None
    pid = lock_file.holder(path)
    if pid is not None:
        return _runs(mesh, node, pid)
    return _in_use(mesh, node, owner) if run_directory.has_node(Path(owner)) else None


def _runs(mesh: Path, node: str, pid: int | None) -> str:
    return (
        f"another agent (pid {pid}) runs for the node {node} of the mesh state {mesh}; stop it first, or give this one "
        "the name of its own node"
    )


def _in_use(mesh: Path, node: str, owner: str) -> str:
    return (
        f"the node {node} of the mesh state {mesh} is in use by the run directory {owner}: start the agent with that "
        f"one, or run '{run_directory.command('cleanup', Path(owner))}' first"
    )


def withdraw_own(run_dir: Path, mesh: Path, node: str) -> Path | None:
    """Withdraws the publication of `node` that an agent of this run directory made, and its claim. Its path; None when
    there is none, or when it is somebody else's by now, whose it stays. Raises PublicationError."""
    path, publication = _path(mesh, node), path_of(mesh, node)
    try:
        return publication if _withdraw_own(path, publication, run_dir, mesh, node) else None
    except AlreadyLocked:
        return None
    except OSError as error:
        raise PublicationError(f"cannot withdraw {publication}: {error.filename}: {error.strerror or error}") from None


def _withdraw_own(path: Path, publication: Path, run_dir: Path, mesh: Path, node: str) -> bool:
    """The claim is held meanwhile: nobody begins to publish for the node between the look at it and the withdrawal."""
    if not path.exists() and not publication.exists():
        return False
    lock = LockFile(path, str(run_dir))
    mine = lock.previous in ("", str(run_dir))
    try:
        if not mine:
            lock.write(lock.previous)
            return False
        there = publication.exists()
        withdraw(mesh, node)
        return there
    finally:
        lock.release(remove=mine)


def _path(mesh: Path, node: str) -> Path:
    return mesh / ENROLLED / f".{node}.claim"
