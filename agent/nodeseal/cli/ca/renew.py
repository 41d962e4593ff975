"""`nodeseal ca renew`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import describe, directory_argument, key_type_option, kind_of_option, reporting, say
from nodeseal.cli.errors import CommandError
from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaRenewed


@click.command("renew", cls=Command)
@directory_argument()
@click.option("--certificate", type=PATH, metavar="FILE", help="What was signed for DIR's last request.")
@key_type_option
@output_option
@reporting
def command(directory: Path, certificate: Path | None, key_type: str | None, output: str) -> int:
    """Gives DIR its next intermediate, with a key of its own: signed by root.key, if that is in DIR, or else the one in
    FILE, which `nodeseal ca sign` made from the request of `nodeseal ca request`. It counts whole or not at all. Agents
    take it on by themselves, and no connection is cut."""
    from nodeseal.authority.renewal import accept, renew

    now = datetime.now(UTC)
    if certificate is None:
        cert = renew(directory, now=now, kind=kind_of_option(key_type))
    elif key_type is None:
        cert = accept(directory, certificate, now=now)
    else:
        raise CommandError("--key-type is for a key that is made now, and FILE is for one that waits; leave one out")
    say(
        output,
        CaRenewed(directory=str(directory), **describe(cert)),
        f"{directory} has its next intermediate, valid until {cert.not_valid_after_utc:%Y-%m-%d %H:%M}Z",
        "agents that read this directory take it on by themselves; others need intermediate.pem and intermediate.key",
    )
    return 0
