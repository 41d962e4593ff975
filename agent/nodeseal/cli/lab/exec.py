"""`nodeseal lab exec`: a command in a pod, whose output and exit status are its own."""

from __future__ import annotations

import sys

import click

from nodeseal.cli.errors import UsageError
from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.tree import Command


class _Exec(Command):
    """Options of ours may stand on both sides of POD. What begins with the next word, or behind `--`, is the pod's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Moves options that stand behind POD before it, where click looks for them."""
        found, _rest, _order = self.make_parser(ctx).parse_args(list(args))
        behind = found["command"]
        if isinstance(behind, tuple) and behind[0].startswith("-") and "--" in behind:
            pod, cut = len(args) - len(behind) - 1, behind.index("--")
            args = [*args[:pod], *behind[:cut], args[pod], *behind[cut:]]
        return super().parse_args(ctx, args)


def _without_divider(_ctx: click.Context, _parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    return words[1:] if words[:1] == ("--",) else words


@click.command("exec", cls=_Exec, context_settings={"allow_interspersed_args": False})
@name_option()
@click.argument("pod", metavar="POD", help="in which")
@click.argument(
    "command",
    metavar="-- CMD...",
    nargs=-1,
    type=click.UNPROCESSED,
    callback=_without_divider,
    help="what to run, as it is",
)
@reporting
def command(name: str, pod: str, command: tuple[str, ...]) -> int:
    """Runs a command in a pod."""
    from nodeseal_lab.lab import Lab
    from nodeseal_lab.pods import exec_in_pod

    if not command:
        raise UsageError("lab exec: expected a command: nodeseal lab exec POD -- CMD...")
    sys.stdout.flush()
    return exec_in_pod(Lab.open(name), pod, list(command))
