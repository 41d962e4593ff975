"""The command `nodeseal`. Each command is in a module of its own, which is imported when it is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

COMPLETE = "_NODESEAL_COMPLETE"
"""The variable by which a shell asks what may stand at a place of a command line, see completion.py."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status: 0, 1 when it failed, 2 when it was used wrongly."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["core"]:
        # What an agent starts, and no command for people. The process must stay small, and lives for long: the other
        # commands are not even imported, nor is click.
        from nodeseal.splice import process

        return process.main(arguments[1:])
    return _command(arguments)


def _command(arguments: list[str]) -> int:
    from nodeseal.cli import output
    from nodeseal.cli.errors import CommandError

    try:
        with output.guarded():
            return _run(arguments)
    except CommandError as error:
        if isinstance(error, output.OutputError):
            output.give_up()
        first, *more = str(error).splitlines() or [""]
        print("\n".join([f"nodeseal: {first}", *more]), file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read our output went away, as `head` does.
        output.give_up()
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    import click

    from nodeseal.cli import root
    from nodeseal.cli.errors import UsageError

    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(root.command, {}, root.NAME, COMPLETE, instruction)
    try:
        with root.command.make_context(root.NAME, arguments) as context:
            status: int = root.command.invoke(context)
            return status
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        raise UsageError(_usage(error)) from None


def _usage(error: click.UsageError) -> str:
    """What is wrong, and how the command that it was said to is used: one line."""
    text = error.format_message()
    text = f"{text[:1].lower()}{text[1:].removesuffix('.')}"
    if error.ctx is None:
        return text
    path = error.ctx.command_path
    usage = " ".join([path, *error.ctx.command.collect_usage_pieces(error.ctx)])
    return f"{text}{' ' if text.endswith('?') else '; '}usage: {usage}, see '{path} --help'"
