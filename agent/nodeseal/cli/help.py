"""`nodeseal help`: the help of a command, as its --help prints it."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from nodeseal.cli.errors import UsageError
from nodeseal.cli.tree import Command, Group, below


def _complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    one = ctx.find_root()
    for name in ctx.params["path"]:
        found = one.command.get_command(one, name) if isinstance(one.command, Group) else None
        if found is None:
            return []
        one = below(one, found)
    return one.command.shell_complete(one, incomplete) if isinstance(one.command, Group) else []


@click.command("help", cls=Command)
@click.argument(
    "path", metavar="[COMMAND]...", nargs=-1, shell_complete=_complete, help="a command; with none, the list of all"
)
@click.pass_context
def command(ctx: click.Context, path: tuple[str, ...]) -> int:
    """Prints the help of a command."""
    one = ctx.find_root()
    for name in path:
        if not isinstance(one.command, Group):
            raise UsageError(f"unknown command {name!r} of '{one.command_path}': it has no commands below it")
        one = below(one, one.command.named(one, name))
    click.echo(one.get_help())
    return 0
