"""What a command line says, without running it."""

from __future__ import annotations

from unittest import mock

import click

from nodeseal.cli import root
from nodeseal.cli.tree import Command


def parsed(*words: str) -> click.Context:
    """The context of the command that these words are of, with its `params`. Raises click.UsageError, UsageError."""
    with (
        mock.patch.object(Command, "invoke", lambda _self, ctx: ctx),
        root.command.make_context(root.NAME, list(words)) as whole,
    ):
        found: click.Context = root.command.invoke(whole)
        return found
