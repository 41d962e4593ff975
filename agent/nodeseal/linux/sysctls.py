"""Kernel settings of a network namespace: changing them, and putting them back.

Functions here are to be called inside the namespace: /proc/sys/net belongs to the thread that opens it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeseal.linux.errors import LinuxError

_ROOT = Path("/proc/sys")


@dataclass(slots=True)
class Sysctl:
    """One setting below /proc/sys: what it was, and what it was set to."""

    path: str
    before: str
    after: str


def plan(wanted: dict[str, str]) -> list[Sysctl]:
    """What has to change: path below /proc/sys -> value. Settings that hold the value already are left out.

    Raises LinuxError when the kernel lacks one.
    """
    changes = []
    for path, after in wanted.items():
        try:
            before = (_ROOT / path).read_text().strip()
        except OSError as error:
            raise LinuxError(f"cannot read the kernel setting {path}: {error.strerror}") from None
        if before != after:
            changes.append(Sysctl(path, before, after))
    return changes


def apply(changes: list[Sysctl]) -> None:
    """Make the changes. Raises LinuxError."""
    for change in changes:
        try:
            (_ROOT / change.path).write_text(change.after)
        except OSError as error:
            raise LinuxError(
                f"cannot set the kernel setting {change.path} to {change.after}: {error.strerror}"
            ) from None


def restore(change: Sysctl) -> bool:
    """Put one setting back, unless somebody has changed it since. True when it was written. Raises OSError."""
    path = _ROOT / change.path
    try:
        if path.read_text().strip() != change.after:
            return False
        path.write_text(change.before)
    except FileNotFoundError:  # a device that is gone
        return False
    return True
