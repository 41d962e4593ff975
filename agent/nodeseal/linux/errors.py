"""What this machine refuses, as seen by the user."""

from __future__ import annotations


class LinuxError(Exception):
    """The kernel, or a program of the system, lacks something or refused it. The text is one line: what, where, what to
    do.
    """
