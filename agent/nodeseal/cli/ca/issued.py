"""`nodeseal ca issued`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting
from nodeseal.cli.ca.service_command import config_option, iso, opened, shown
from nodeseal.cli.options import output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.table import note, render
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaIssued, CaIssuedCertificate

_SHOWN = 100


@click.command("issued", cls=Command)
@click.option("--node", metavar="NAME", help="To this node.")
@click.option("--identity", metavar="ID", help="For this SPIFFE id.")
@click.option("--serial", metavar="HEX", help="With this serial number, or one that begins so.")
@click.option("--valid", is_flag=True, help="Those that have not expired.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="So many, the newest; 100 in a table and all with -o json, unless given.",
)
@config_option
@output_option
@reporting
def command(
    node: str | None,
    identity: str | None,
    serial: str | None,
    valid: bool,
    limit: int | None,
    config: Path,
    output: str,
) -> int:
    """Lists the certificates that the service has issued, the newest first: to which node, for which identity and until
    when. With -o json also why, and what the node proved itself with."""
    from nodeseal.authority.ledger import Selection, plain_serial

    now = datetime.now(UTC) if valid else None
    selection = Selection(node, identity, plain_serial(serial) if serial is not None else None, now)
    if limit is None and output == "table":
        limit = _SHOWN
    _settings, ledger = opened(config)
    with ledger:
        found = list(ledger.issued(selection, limit))
        count = ledger.count(selection) if len(found) == limit else len(found)
    if output == "json":
        rows = [
            CaIssuedCertificate(
                serial=one.serial,
                kind=one.kind.value,
                node=one.node,
                identity=one.identity,
                key_sha256=one.key_sha256.hex(),
                issued=iso(one.issued),
                not_after=iso(one.not_after),
                reason=one.reason,
                credential=one.credential,
            )
            for one in found
        ]
        print_json(CaIssued(certificates=rows, count=count))
        return 0
    if not found:
        print("no such certificate was issued")
        return 0
    cells = [(one.node, one.identity, shown(one.issued), shown(one.not_after), one.serial) for one in found]
    print(render(("NODE", "IDENTITY", "ISSUED", "UNTIL", "SERIAL"), cells, fold=(1, 4)))
    if count > len(found):
        print(note(f"{count - len(found):,} more: --limit, or nodeseal ca export", ""))
    return 0
