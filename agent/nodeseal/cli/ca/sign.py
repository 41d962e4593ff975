"""`nodeseal ca sign`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import check_new, describe, directory_argument, reporting, say, write_new
from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaSigned


@click.command("sign", cls=Command)
@directory_argument("the directory with root.pem and root.key")
@click.argument("request", metavar="REQUEST", type=PATH, help="what `nodeseal ca request` wrote")
@click.argument("file", metavar="FILE", type=PATH, help="the certificate, a new file")
@output_option
@reporting
def command(directory: Path, request: Path, file: Path, output: str) -> int:
    """Signs the key of REQUEST as an intermediate with the root in DIR, for a year, and writes FILE. Nothing else of
    the request is taken. Compare the key's SHA-256 with what `nodeseal ca request` printed: a request that was
    exchanged on its way would make somebody else a CA."""
    from nodeseal.authority.certificates import pem
    from nodeseal.authority.renewal import sign

    check_new(file)
    cert = sign(directory, request, now=datetime.now(UTC))
    write_new(file, pem(cert).encode())
    found = describe(cert)
    say(
        output,
        CaSigned(directory=str(directory), certificate=str(file), **found),
        f"wrote {file}, an intermediate for the trust domain {found['trust_domain']}, valid until "
        f"{cert.not_valid_after_utc:%Y-%m-%d %H:%M}Z",
        f"key SHA-256 {found['key_sha256']}: is that what `nodeseal ca request` printed?",
    )
    return 0
