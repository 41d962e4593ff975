"""The command `nodeseal`. Each command is in a module of its own and imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status: 0, 1 when it failed, 2 when it was used wrongly."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["core"]:
        # What an agent starts, and no command for people. The process must stay small, and lives for long: the other
        # commands are not even imported.
        from nodeseal.splice import process

        return process.main(arguments[1:])
    return _command(arguments)


def _command(arguments: Sequence[str]) -> int:
    from nodeseal.cli import output
    from nodeseal.cli.errors import CommandError

    try:
        with output.guarded():
            return _run(parser().parse_args(arguments))
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


def _run(args: argparse.Namespace) -> int:
    """Runs the command. A script that asked for JSON finds in it what went wrong, too."""
    from nodeseal.cli.errors import CommandError
    from nodeseal.cli.output import OutputError

    try:
        status: int = args.run(args)
    except CommandError as error:
        if getattr(args, "output", None) == "json" and not isinstance(error, OutputError):
            print(json.dumps({"errors": str(error).splitlines()}, indent=2))
        raise
    return status


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from nodeseal import __version__
    from nodeseal.cli import ca, check, cleanup, connections, lab, mesh, status, tree, upgrade_core
    from nodeseal.cli.nodes import add_output_option

    whole = argparse.ArgumentParser(
        prog="nodeseal", description="Mutual TLS for every workload of a node, without a sidecar."
    )
    whole.add_argument("--version", action="version", version=f"nodeseal {__version__}")
    subparsers = whole.add_subparsers(dest="command", metavar="COMMAND")
    status.register(subparsers)
    connections.register(subparsers)
    agent = subparsers.add_parser("agent", help="run the node's agent", description="Runs the agent of a node.")
    agent.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration, see docs/")
    agent.set_defaults(run=_agent)
    upgrade_core.register(subparsers)
    check.register(subparsers)
    mesh.register(subparsers)
    cleanup.register(subparsers)
    ca.register(subparsers)
    lab.register(subparsers)
    version = subparsers.add_parser("version", help="the version of this command")
    add_output_option(version)
    version.set_defaults(run=_version)
    helper = subparsers.add_parser("help", help="the help of a command")
    helper.add_argument("path", metavar="COMMAND", nargs="*", help="a command; with none, the list of all")
    helper.set_defaults(run=_help)
    completion = subparsers.add_parser(
        "completion",
        help="what a shell needs to complete commands",
        description="Prints a script for the shell that completes commands, options and their values.",
    )
    completion.add_argument("shell", choices=("bash",))
    completion.set_defaults(run=_completion)
    tree.complete(whole)
    return whole


def _help(args: argparse.Namespace) -> int:
    from nodeseal.cli import tree
    from nodeseal.cli.errors import UsageError

    one = parser()
    for name in args.path:
        below = tree.children(one)
        if name not in below:
            known = f"there are {', '.join(below)}" if below else "it has no commands below it"
            raise UsageError(f"unknown command {name!r} of '{one.prog}': {known}")
        one = below[name]
    one.print_help()
    return 0


def _completion(_args: argparse.Namespace) -> int:
    from nodeseal.cli import completion

    print(completion.script(parser()), end="")
    return 0


def _agent(args: argparse.Namespace) -> int:
    from nodeseal.cli.errors import CommandError
    from nodeseal.daemon.main import StartError, run

    try:
        return run(args.config)
    except StartError as error:
        raise CommandError(str(error)) from None


def _version(args: argparse.Namespace) -> int:
    from nodeseal import __version__

    print(json.dumps({"version": __version__}) if args.output == "json" else f"nodeseal {__version__}")
    return 0
