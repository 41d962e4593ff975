"""`nodeseal ca export`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting
from nodeseal.cli.ca.service_command import config_option, iso, opened
from nodeseal.cli.tree import Command

FIELDS = ("serial", "kind", "node", "identity", "key_sha256", "issued", "not_after", "reason", "credential")


@click.command("export", cls=Command)
@click.option(
    "--format",
    "form",
    type=click.Choice(("jsonl", "csv")),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV.",
)
@config_option
@reporting
def command(form: str, config: Path) -> int:
    """Prints every certificate that the store has, the newest first: one a line. The fields are those of `nodeseal ca
    issued -o json`."""
    from nodeseal.authority.ledger import Selection

    _settings, ledger = opened(config)
    table = csv.writer(sys.stdout, lineterminator="\n")
    with ledger:
        if form == "csv":
            table.writerow(FIELDS)
        for one in ledger.issued(Selection()):
            values = (
                one.serial, one.kind.value, one.node, one.identity, one.key_sha256.hex(), iso(one.issued),
                iso(one.not_after), one.reason, one.credential,
            )  # fmt: skip
            if form == "csv":
                table.writerow(values)
            else:
                print(json.dumps(dict(zip(FIELDS, values, strict=True))))
    return 0
