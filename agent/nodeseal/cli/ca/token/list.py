"""`nodeseal ca token list`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting
from nodeseal.cli.ca.service_command import config_option, iso, opened, shown
from nodeseal.cli.options import output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.table import render
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaToken, CaTokens


@click.command("list", cls=Command)
@config_option
@output_option
@reporting
def command(config: Path, output: str) -> int:
    """Lists the tokens that can be used, and those that could be, the newest first."""
    now = datetime.now(UTC)
    _settings, ledger = opened(config)
    with ledger:
        found = [(one, one.state(now).value) for one in ledger.tokens()]
    if output == "json":
        rows = [
            CaToken(
                id=one.id,
                node=one.node,
                state=state,
                created=iso(one.created),
                expires=iso(one.expires),
                used=iso(one.used) if one.used is not None else None,
                revoked=iso(one.revoked) if one.revoked is not None else None,
            )
            for one, state in found
        ]
        print_json(CaTokens(tokens=rows))
    elif not found:
        print("no tokens; make one: nodeseal ca token create --node NAME")
    else:
        cells = [
            (one.id, one.node, state, shown(one.created), shown(one.expires), shown(one.used or one.revoked))
            for one, state in found
        ]
        print(render(("ID", "NODE", "STATE", "CREATED", "EXPIRES", "USED OR REVOKED"), cells, fold=(1,)))
    return 0
