"""Files of the mesh state that nodeseal's own commands write: trust anchors, revocations.

One writer at a time: a command reads the directory, decides and writes under a lock on `.writer.lock` in it. A file is
replaced whole, so that agents never see half of one. What is in other files, written by hand, is none of its business.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nodeseal.documents.document import Problem, read_content
from nodeseal.linux import directories
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.sources.directory.state import StateFile

LOCK = ".writer.lock"


class WriteError(Exception):
    """A file of the mesh state could not be read or written; one line."""


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Nobody else writes meanwhile. Raises WriteError at once when somebody does."""
    try:
        lock = LockFile(directory / LOCK)
    except AlreadyLocked as error:
        raise WriteError(f"another command (pid {error.pid}) writes in {directory}; run this one again") from None
    except OSError as error:
        raise WriteError(f"cannot write in {directory}: {error.strerror or error}; name the mesh directory") from None
    try:
        yield
    finally:
        lock.release(remove=True)


def read_own(path: Path) -> StateFile | None:
    """What a file that commands write says now; None when there is none. Raises WriteError for one that is broken."""
    if not os.path.lexists(path):
        return None
    file = StateFile(read_content(path, path.name))
    if file.problems:
        raise WriteError(f"{_first(file.problems)}; correct or remove it: this command would lose what it says")
    return file


def replace(path: Path, text: str | None) -> None:
    """The file says this from now on; None: there is no such file. Raises WriteError."""
    if path.is_symlink():
        raise WriteError(
            f"{path} is a symbolic link, which this command would replace: make it a file, or change what it leads to; "
            "nothing was changed"
        )
    temporary = path.with_name(f".{path.name}.new")
    try:
        if text is None:
            path.unlink(missing_ok=True)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        directories.sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error


def _first(problems: tuple[Problem, ...]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"
