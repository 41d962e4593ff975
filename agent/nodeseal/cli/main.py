"""The command `nodeseal`. Each command is in a module of its own and imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status: 0, 1 when it failed, 2 when it was used wrongly."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["core"]:
        # The core process must stay small, and lives for long: the other commands are not even imported.
        from nodeseal.core import process

        return process.main(arguments[1:])
    return _command(arguments)


def _command(arguments: Sequence[str]) -> int:
    from nodeseal.cli.errors import CommandError

    args = _parser().parse_args(arguments)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except CommandError as error:
        first, *more = str(error).splitlines() or [""]
        print("\n".join([f"nodeseal: {first}", *more]), file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read our output went away, as `head` does; Python must not complain of it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    from nodeseal.cli import ca, check, cleanup, connections, status, upgrade_core
    from nodeseal.cli.nodes import add_output_option
    from nodeseal.lab import commands as lab

    parser = argparse.ArgumentParser(
        prog="nodeseal", description="Mutual TLS for every workload of a node, without a sidecar."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    status.register(subparsers)
    connections.register(subparsers)
    agent = subparsers.add_parser("agent", help="run the node's agent")
    agent.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration, see docs/")
    agent.set_defaults(run=_agent)
    upgrade_core.register(subparsers)
    check.register(subparsers)
    cleanup.register(subparsers)
    ca.register(subparsers)
    lab.register(subparsers)
    version = subparsers.add_parser("version", help="the version of this command")
    add_output_option(version)
    version.set_defaults(run=_version)
    # Without a help text it is not listed: the agent starts it.
    subparsers.add_parser("core", add_help=False)
    return parser


def _agent(args: argparse.Namespace) -> int:
    from nodeseal.agent.process import StartError, run
    from nodeseal.cli.errors import CommandError

    try:
        return run(args.config)
    except StartError as error:
        raise CommandError(str(error)) from None


def _version(args: argparse.Namespace) -> int:
    from nodeseal import __version__

    print(json.dumps({"version": __version__}) if args.output == "json" else f"nodeseal {__version__}")
    return 0
