"""Directories on a disk."""

from __future__ import annotations

import os
from pathlib import Path


def sync(directory: Path) -> None:
    """Makes sure that the names in the directory are on the disk (fsync(2)). Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
