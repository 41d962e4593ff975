"""`nodeseal ca init`: the certificate authority in a directory."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from nodeseal.cli.errors import CommandError
from nodeseal.cli.nodes import add_output_option


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `ca` with `init`."""
    parser = subparsers.add_parser("ca", help="the certificate authority in a directory")
    commands = parser.add_subparsers(dest="ca_command", metavar="COMMAND", required=True)
    init = commands.add_parser(
        "init",
        help="make a root and an intermediate",
        description="Makes a root and an intermediate in DIR. Agents need root.pem, intermediate.pem and "
        "intermediate.key; root.key signs intermediates only and belongs somewhere offline.",
    )
    init.add_argument("directory", type=Path, metavar="DIR", help="an empty directory, or one that is made")
    init.add_argument("--trust-domain", default="example.org", metavar="NAME", help="default: example.org")
    add_output_option(init)
    init.set_defaults(run=_init)


def _init(args: argparse.Namespace) -> int:
    from nodeseal.identity.errors import AuthorityError
    from nodeseal.identity.initialise import init_authority

    try:
        init_authority(args.directory, trust_domain=args.trust_domain, now=datetime.now(UTC))
    except AuthorityError as error:
        raise CommandError(str(error)) from None
    if args.output == "json":
        print(json.dumps({"directory": str(args.directory), "trust_domain": args.trust_domain}, indent=2))
    else:
        print(f"made a CA for the trust domain {args.trust_domain} in {args.directory}")
        print(f"keep {args.directory / 'root.key'} offline: agents do not need it")
    return 0
