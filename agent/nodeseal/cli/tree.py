"""The tree of commands: what all of them have in common is added here, once they are registered."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

from nodeseal.cli import examples

_USED_WRONGLY = 2


class _Formatter(argparse.HelpFormatter):
    """Folds sentences and leaves lines as they are where there are several: the examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def walk(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """("", the whole), ("lab", ...), ("lab up", ...) and so on, without those that are not for people."""
    yield path, parser
    for name, child in children(parser).items():
        yield from walk(child, f"{path} {name}".strip())


def children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below one, by name, in the order of the help."""
    group = _group(parser)
    if group is None:
        return {}
    listed = [action.dest for action in group._choices_actions]
    return {name: group.choices[name] for name in listed}


def complete(parser: argparse.ArgumentParser) -> None:
    """Gives every command its examples, and those with commands below them their help when none is named."""
    for path, one in walk(parser):
        one.formatter_class = _Formatter
        one.epilog = examples.text(path) or None
        group = _group(one)
        if group is not None:
            group.required = False
            one.set_defaults(run=functools.partial(_no_command, one))


def _group(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser] | None:
    return next((one for one in parser._actions if isinstance(one, argparse._SubParsersAction)), None)


def _no_command(parser: argparse.ArgumentParser, _args: argparse.Namespace) -> int:
    """The help that was asked for in vain; the exit status is that of a wrong use, for scripts."""
    parser.print_help()
    return _USED_WRONGLY
