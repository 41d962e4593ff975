"""The tree of commands: what all of them have in common. A group knows what its commands are called and what they are
for; the module of one is imported only when it is run, or asked for its help."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from nodeseal.cli import examples
from nodeseal.cli.errors import CommandError, UsageError
from nodeseal.cli.output import OutputError

_USED_WRONGLY = 2


class _WithExamples(click.Command):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, each on a line of its own."""
        given = examples.EXAMPLES.get(path_of(ctx), ())
        width = max((len(line) for line, _what in given), default=0)
        with formatter.section("Examples"):
            for line, what in given:
                formatter.write(f"  {line:<{width}}  {what}\n")


class Command(_WithExamples):
    """A command. Its callback returns the exit status; its help is the callback's docstring."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs it. A script that asked for JSON finds in it what went wrong, too."""
        try:
            return super().invoke(ctx)
        except CommandError as error:
            if ctx.params.get("output") == "json" and not isinstance(error, OutputError):
                print(json.dumps({"errors": str(error).splitlines()}, indent=2))
            raise


class Group(_WithExamples, click.Group):
    """Commands by their names, with a line on each. `package`: where their modules are: that of `upgrade-core` is
    upgrade_core, and has it as `command`."""

    def __init__(self, name: str, package: str, summaries: Mapping[str, str], **settings: Any) -> None:
        super().__init__(name, subcommand_metavar="COMMAND", **settings)
        self.summaries = dict(summaries)
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the help."""
        return list(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports it."""
        if cmd_name not in self.summaries:
            return None
        module = importlib.import_module(f"{self._package}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def named(self, ctx: click.Context, name: str) -> click.Command:
        """The command of this name. Raises UsageError with those that there are."""
        command = self.get_command(ctx, name)
        if command is None:
            known = ", ".join(self.summaries)
            raise UsageError(f"unknown command {name!r} of '{ctx.command_path}': there are {known}")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the names that there are in the error."""
        if not ctx.resilient_parsing:
            self.named(ctx, args[0])
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a command: its help, and the exit status of a wrong use, for scripts."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit(_USED_WRONGLY)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without importing any."""
        names = [
            CompletionItem(name, help=what) for name, what in self.summaries.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def path_of(ctx: click.Context) -> str:
    """ "" for the whole, "lab up" for a command of a group."""
    return ctx.command_path.partition(" ")[2]


def walk(ctx: click.Context) -> Iterator[click.Context]:
    """The contexts of a command and of all below it, in the order of the help."""
    yield ctx
    if isinstance(ctx.command, Group):
        for name in ctx.command.list_commands(ctx):
            yield from walk(below(ctx, ctx.command.named(ctx, name)))


def below(ctx: click.Context, command: click.Command) -> click.Context:
    """The context of a command of the group that `ctx` is of."""
    return command.context_class(command, parent=ctx, info_name=command.name, **command.context_settings)
