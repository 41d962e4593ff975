"""How a command ends when it cannot do what it was asked."""

from __future__ import annotations


class CommandError(Exception):
    """Printed as "nodeseal: <text>" on standard error, exit status 1. The text is one line: what, where, what to do."""

    status = 1


class UsageError(CommandError):
    """The command line does not say what is needed: exit status 2."""

    status = 2
