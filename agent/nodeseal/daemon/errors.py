"""What keeps an agent from running."""

from __future__ import annotations


class StartError(Exception):
    """The agent cannot run; one line (a configuration error: one line a problem)."""
