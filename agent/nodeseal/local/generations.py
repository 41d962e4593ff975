"""Generations: the cores of one node that run at the same time, and what they are called.

Each core process has a number. By it go its lock file, which tells whether it runs, and its control socket:

    core-7.pid   held by the core (lock_file.py); removed by it when it ends in order
    core-7.sock  its control socket

A newer core has the larger number. Usually there is one; after an upgrade the older ones go on until their last
connection has ended.
"""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path

from nodeseal import __version__
from nodeseal.linux import lock_file

LOG_NAME = "core.log"
_NAMED = re.compile(r"core-([1-9][0-9]{0,8})\.(pid|sock)")
_DIGITS = 12


def socket_path(run_dir: Path, generation: int) -> Path:
    """Where the core of this generation serves its control socket."""
    return run_dir / f"core-{generation}.sock"


def lock_path(run_dir: Path, generation: int) -> Path:
    """The file that the core of this generation holds a lock on."""
    return run_dir / f"core-{generation}.pid"


def files(run_dir: Path) -> list[Path]:
    """All lock files and sockets of cores, of dead ones as well."""
    return sorted(path for path in _entries(run_dir) if _NAMED.fullmatch(path.name))


def known(run_dir: Path) -> list[int]:
    """The generations that left any file, oldest first; not all of them run."""
    found = {int(match[1]) for path in _entries(run_dir) if (match := _NAMED.fullmatch(path.name))}
    return sorted(found)


def running(run_dir: Path) -> dict[int, int]:
    """Generation -> pid of the cores that run, oldest first."""
    found = {}
    for generation in known(run_dir):
        pid = lock_file.holder(lock_path(run_dir, generation))
        if pid is not None:
            found[generation] = pid
    return found


def remove_files(run_dir: Path, generation: int) -> None:
    """Removes what a core that has ended left. Raises OSError."""
    for path in (socket_path(run_dir, generation), lock_path(run_dir, generation)):
        path.unlink(missing_ok=True)


@functools.cache
def build() -> str:
    """What is installed as the core: "0.1.0+3f2a9c0b1d4e", the version and a hash over all of the core's code.

    For the agent, which tells each core its own at the start: so it sees that the one that runs is another one.
    """
    import hashlib  # the core process, which imports this module, does without

    package = Path(__file__).resolve().parents[1]
    sources: list[Path] = []
    for directory in ("splice", "contracts", "mesh", "linux"):
        sources += (package / directory).glob("*.py")
    sources += package.glob("_core*.so")
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}+{digest.hexdigest()[:_DIGITS]}"


def _entries(run_dir: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return list(run_dir.iterdir())
    return []
