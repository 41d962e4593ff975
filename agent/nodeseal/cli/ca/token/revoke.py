"""`nodeseal ca token revoke`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting, say
from nodeseal.cli.ca.service_command import config_option, opened
from nodeseal.cli.errors import UsageError
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaTokensRevoked


@click.command("revoke", cls=Command)
@click.argument("ids", metavar="ID...", nargs=-1, help="as `nodeseal ca token list` shows it")
@click.option("--all", "all_of_them", is_flag=True, help="Every token that can still be used.")
@config_option
@output_option
@reporting
def command(ids: tuple[str, ...], all_of_them: bool, config: Path, output: str) -> int:
    """Makes tokens useless that were not used yet. Nodes that have joined stay."""
    if bool(ids) == all_of_them:
        raise UsageError("either IDs or --all is expected")
    _settings, ledger = opened(config)
    with ledger:
        revoked = [one.id for one in ledger.revoke_tokens(None if all_of_them else ids, datetime.now(UTC))]
    say(output, CaTokensRevoked(ids=revoked), *(f"revoked {one}" for one in revoked or ["no token: none was open"]))
    return 0
