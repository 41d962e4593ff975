"""What tests build and may build less often than they run: directories in build/tests, which `make clean` removes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "tests"


@contextlib.contextmanager
def kept_in(name: str) -> Iterator[Path]:
    """The directory of this name, which no other process has meanwhile: the second finds what the first built."""
    directory = BUILD / name
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(fd)
