"""Processes held by a descriptor: it stays that process's, whoever gets the number after it (pidfd_open(2))."""

from __future__ import annotations

import os


def open_process(pid: int) -> int:
    """A pidfd, the caller's to close. Raises ProcessLookupError when there is no such process.

    Of a number that is a thread's by now, Linux 6.15 and later say ENOENT.
    """
    try:
        return os.pidfd_open(pid)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"{pid} is a thread, and no process") from error
