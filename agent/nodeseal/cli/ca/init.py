"""`nodeseal ca init`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import directory_argument, reporting, say
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.contracts.output import CaMade


@click.command("init", cls=Command)
@directory_argument("an empty directory, or one that is made")
@click.option("--trust-domain", default="example.org", show_default=True, metavar="NAME", help="Whose ids it signs.")
@click.option(
    "--key-type",
    type=click.Choice([kind.value for kind in KeyKind]),
    default=KeyKind.P256.value,
    show_default=True,
    help="The kind of both keys.",
)
@output_option
@reporting
def command(directory: Path, trust_domain: str, key_type: str, output: str) -> int:
    """Makes a root and an intermediate in DIR. Agents need root.pem, intermediate.pem and intermediate.key; root.key
    signs intermediates only and belongs somewhere offline."""
    from nodeseal.authority.creation import init_authority

    init_authority(directory, trust_domain=trust_domain, kind=KeyKind(key_type), now=datetime.now(UTC))
    say(
        output,
        CaMade(directory=str(directory), trust_domain=trust_domain, key_type=key_type),
        f"made a CA for the trust domain {trust_domain} in {directory}",
        f"keep {directory / 'root.key'} offline: agents do not need it",
    )
    return 0
