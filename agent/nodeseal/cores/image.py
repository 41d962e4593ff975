"""The files that cores run from, copied to a directory of the host: a container's own go with the container.

    DIRECTORY/DIGEST/...     the root directory of cores, by the digest of what is in it
    DIRECTORY/DIGEST.lock    held by each core that runs from it and by each agent that would start one from it
    DIRECTORY/.new-DIGEST-*  a copy that is being made, or goes

A copy appears whole or not at all (rename(2)). One that is there is used as it is if its content has the digest of its
name, which is computed each time a core is started: a disk may have lost what was written last. One that nobody holds
is removed, and so is what somebody left who was killed in the middle.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from nodeseal.cores.core_files import CoreFiles, FileSet
from nodeseal.linux.permissions import UNCHANGED, others_can

log = logging.getLogger("nodeseal.agent")

_NAME = re.compile(r"([0-9a-f]{32})(?:\.lock)?|\.new-([0-9a-f]{32})-.*")
"""Of all that belongs to a copy, with its digest."""
_DRAFT = ".new-"
_DRAFT_AGE_S = 600.0
"""After which a draft that names no digest, as former versions made them, is somebody's who was killed."""


class ImageError(Exception):
    """The copy cannot be made or used; one line."""


class Image:
    """The copy of some files, in use until close()."""

    def __init__(self, directory: Path, files: CoreFiles) -> None:
        """Makes the copy unless it is there. Raises ImageError."""
        self.files = files
        began = time.monotonic()
        try:
            _make_directory(directory)
            self.digest = _digest(files.found, Path("/"))
            self.root = directory / self.digest
            self._lock = _hold(_lock_path(self.root), fcntl.LOCK_SH)
        except OSError as error:
            raise ImageError(_text(directory, error)) from None
        try:
            self._make(directory, began)
        except OSError as error:
            self.close()
            raise ImageError(_text(directory, error)) from None
        except BaseException:
            self.close()
            raise

    @property
    def lock(self) -> int:
        """For a core that is started from it: a descriptor that keeps the copy as long as any process has it."""
        return self._lock

    def close(self) -> None:
        """Whoever was started from it still keeps it."""
        os.close(self._lock)

    def _make(self, directory: Path, began: float) -> None:
        if self.root.is_dir():
            if _digest(_content(self.root), self.root) == self.digest:
                return
            log.warning("%s is damaged: made anew", self.root)
            _remove(self.root)
        draft = _draft(self.root)
        draft.mkdir(mode=0o755)
        try:
            size = _copy(self.files.found, draft)
            if _digest(_content(draft), draft) != self.digest:
                raise ImageError(f"what a core needs changes while it is copied to {directory}: start again")
            try:
                draft.rename(self.root)
            except OSError:
                # Another agent was quicker, and has made the same.
                if not self.root.is_dir():
                    raise
        finally:
            if draft.is_dir():
                _remove(draft)
        seconds = time.monotonic() - began
        log.info("copied the %.0f MB that a core needs to %s in %.1f s", size / 1e6, self.root, seconds)


def unusable(directory: Path) -> str | None:
    """Why cores could not be run from there, one line; None when they can. Changes nothing. Raises OSError."""
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    if not there.is_dir():
        return f"{there} is not a directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written"
    if os.statvfs(there).f_flag & os.ST_NOEXEC:
        return (
            f"{there} is mounted noexec, so that nothing in it can be run: name a directory elsewhere, in /var/lib say"
        )
    if there == directory and (why := others_can(there.stat(), UNCHANGED)) is not None:
        return f"others can change {there}: {why}; chown root and chmod 700 it, or name another"
    return None


def remove_unused(directory: Path) -> list[Path]:
    """Removes the copies that nobody holds, and what was left half done. What was removed. Raises OSError."""
    removed = []
    parts: dict[str, list[Path]] = {}
    for path in _entries(directory):
        if (match := _NAME.fullmatch(path.name)) is not None:
            parts.setdefault(match[1] or match[2], []).append(path)
        elif path.name.startswith(_DRAFT):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _DRAFT_AGE_S:
                    _remove(path)
    for digest, paths in parts.items():
        root = directory / digest
        try:
            lock = _hold(_lock_path(root), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        try:
            for path in paths:
                if path != _lock_path(root):
                    with contextlib.suppress(FileNotFoundError):  # another agent was quicker
                        _remove(path)
            _lock_path(root).unlink()
            removed += [root] if root in paths else []
        finally:
            os.close(lock)
    return removed


def _entries(directory: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(directory.iterdir())
    return []


def _make_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (why := unusable(directory)) is not None:
        raise ImageError(why)


def _draft(root: Path) -> Path:
    return root.with_name(f"{_DRAFT}{root.name}-{os.getpid()}-{time.monotonic_ns()}")


def _lock_path(root: Path) -> Path:
    return root.with_name(f"{root.name}.lock")


def _hold(path: Path, operation: int) -> int:
    """A descriptor with that lock. Raises OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, operation)
            with contextlib.suppress(FileNotFoundError):
                # It may have been removed between open and flock.
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _content(root: Path) -> FileSet:
    """What is in a copy, by the paths that it has there. Directories do not count."""
    found = FileSet()
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            place = Path("/", path.relative_to(root))
            if path.is_symlink():
                found.links[place] = str(path.readlink())
            elif path.is_file():
                found.files.add(place)
    return found


def _digest(found: FileSet, root: Path) -> str:
    """Of every name and content. Raises OSError."""
    digest = hashlib.sha256()
    for line in sorted(_lines(found, root)):
        digest.update(line)
    return digest.hexdigest()[:32]


def _lines(found: FileSet, root: Path) -> Iterator[bytes]:
    for path, target in found.links.items():
        yield os.fsencode(f"{path}\0link\0{target}\n")
    for path in found.files:
        with _at(root, path).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            kind = "program" if os.fstat(file.fileno()).st_mode & 0o100 else "file"
        yield os.fsencode(f"{path}\0{kind}\0{content}\n")


def _copy(found: FileSet, root: Path) -> int:
    """How many bytes. Raises OSError."""
    size = 0
    for parent in {path.parent for path in (*found.links, *found.files)}:
        _at(root, parent).mkdir(mode=0o755, parents=True, exist_ok=True)
    for path, target in found.links.items():
        _at(root, path).symlink_to(target)
    for path in found.files:
        place = shutil.copyfile(path, _at(root, path))
        status = path.stat()
        place.chmod(0o755 if status.st_mode & 0o100 else 0o644)
        # Compiled Python goes by the time of its source.
        os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns))
        size += status.st_size
    return size


def _at(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _remove(root: Path) -> None:
    """Whole or not at all to the eye of others. Raises OSError."""
    aside = root if root.name.startswith(_DRAFT) else _draft(root)
    root.rename(aside)
    shutil.rmtree(aside)


def _text(directory: Path, error: OSError) -> str:
    return f"cannot copy what a core needs to {directory}: {error.filename or ''} {error.strerror or error}"
