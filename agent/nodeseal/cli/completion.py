"""`nodeseal completion`: the script by which a shell asks this command what may stand at a place of a line."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from nodeseal.cli.main import COMPLETE
from nodeseal.cli.tree import Command


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Prints a script for the shell that completes commands, options and their values."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root()
    # Not bash's own source(), which starts a bash to ask for its version.
    print(ShellComplete.source(kind(root.command, {}, str(root.info_name), COMPLETE)))
    return 0
