"""The manual's pages, one a command: `python -m nodeseal.cli.manual DIR` (or `make man`) writes them as man(7) reads
them, made of what --help says."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path

import click

from nodeseal import __version__
from nodeseal.cli import examples, root
from nodeseal.cli.tree import Group, path_of, walk


def page_name(ctx: click.Context) -> str:
    """ "nodeseal-lab-up" for `nodeseal lab up`."""
    return ctx.command_path.replace(" ", "-")


def pages() -> Iterator[tuple[str, str]]:
    """(file name, text) of the page of each command."""
    for ctx in walk(root.context()):
        yield f"{page_name(ctx)}.1", page(ctx)


def page(ctx: click.Context) -> str:
    """The page of one command."""
    command, name = ctx.command, page_name(ctx)
    records = [record for one in command.get_params(ctx) if (record := one.get_help_record(ctx)) is not None]
    options = [record for record in records if record[0].startswith("-") and not record[0].startswith("-- ")]
    summaries = list(command.summaries.items()) if isinstance(command, Group) else []
    usage = " ".join(command.collect_usage_pieces(ctx))
    parts = [
        f'.TH {name.upper()} 1 "" "nodeseal {__version__}" "nodeseal"',
        *_section("NAME", f"{_text(name)} \\- {_text(_summary(ctx))}"),
        *_section("SYNOPSIS", f".B {_text(ctx.command_path)}\n{_text(usage)}"),
        *_section("DESCRIPTION", _text(" ".join(cleandoc(command.help or "").split()))),
        *_section("ARGUMENTS", *_items(record for record in records if record not in options)),
        *_section("OPTIONS", *_items(options)),
        *_section("COMMANDS", *_items(summaries)),
        *_section("EXAMPLES", *_items((what, line) for line, what in examples.EXAMPLES.get(path_of(ctx), ()))),
        *_section("SEE ALSO", *_related(ctx)),
    ]
    return "\n".join(parts) + "\n"


def _section(title: str, *lines: str) -> list[str]:
    return [f".SH {title}", *lines] if lines else []


def _items(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for head, text in items:
        yield f".TP\n.B {_text(head)}\n{_text(text)}"


def _summary(ctx: click.Context) -> str:
    if ctx.parent is None:
        return (ctx.command.help or "").rstrip(".")
    group = ctx.parent.command
    assert isinstance(group, Group)
    return group.summaries[str(ctx.info_name)]


def _related(ctx: click.Context) -> Iterator[str]:
    others = [ctx.parent] if ctx.parent is not None else []
    others += [one for one in walk(ctx) if one.parent is ctx]
    if others:
        yield ",\n".join(f".BR {_text(page_name(one))} (1)" for one in others)


def _text(text: str) -> str:
    """What man(7) shows as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in pages():
        (directory / file).write_text(text)
