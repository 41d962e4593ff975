"""`nodeseal completion bash`: what bash needs to complete commands, options and their values."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

from nodeseal.cli import tree

_SCRIPT = """\
# Completion of nodeseal for bash, made by 'nodeseal completion bash'.
_nodeseal() {
    local path="" words="" i
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${path:+$path }${COMP_WORDS[i]}" in
@PATHS@) path="${path:+$path }${COMP_WORDS[i]}" ;;
        esac
    done
    case "$path $previous" in
@VALUES@
        *)
            case "$path" in
@WORDS@
            esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
# What is completed to nothing here is a file, or a word of the user's own.
complete -o default -F _nodeseal nodeseal
"""


def script(parser: argparse.ArgumentParser) -> str:
    """The script for this tree of commands."""
    commands = list(tree.walk(parser))
    paths = "|".join(shlex.quote(path) for path, _one in commands if path)
    values = [line for path, one in commands for line in _values(path, one)]
    offered = {path: _words(one) for path, one in commands}
    offered["help"] = f"{' '.join(tree.children(parser))} {offered['help']}"  # it is about any of them
    words = [f"                {shlex.quote(path)}) words={shlex.quote(text)} ;;" for path, text in offered.items()]
    return (
        _SCRIPT.replace("@PATHS@", f"            {paths}")
        .replace("@VALUES@", "\n".join(values))
        .replace("@WORDS@", "\n".join(words))
    )


def _words(parser: argparse.ArgumentParser) -> str:
    """What may stand behind a command: commands, words of its own, options."""
    words = list(tree.children(parser))
    for action in sorted(_actions(parser), key=lambda one: bool(one.option_strings)):
        words += action.option_strings or [str(one) for one in action.choices or ()]
    return " ".join(words)


def _values(path: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """What may stand behind an option that takes a value."""
    for action in _actions(parser):
        if action.option_strings and action.nargs != 0:
            where = "|".join(shlex.quote(f"{path} {option}") for option in action.option_strings)
            values = " ".join(str(one) for one in action.choices or ())
            yield f"        {where}) words={shlex.quote(values)} ;;"


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [one for one in parser._actions if not isinstance(one, argparse._SubParsersAction)]
