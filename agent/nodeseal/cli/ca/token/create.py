"""`nodeseal ca token create`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting, say
from nodeseal.cli.ca.service_command import config_option, iso, opened, shown
from nodeseal.cli.errors import CommandError
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaTokenMade

LONGEST = timedelta(days=30)


@click.command("create", cls=Command)
@click.option("--node", required=True, metavar="NAME", help="The node's name in the mesh state.")
@click.option("--ttl", default="1h", show_default=True, metavar="DURATION", help="How long it can be used.")
@config_option
@output_option
@reporting
def command(node: str, ttl: str, config: Path, output: str) -> int:
    """Makes a token with which the node NAME can join, once. Who has the token can be that node: bring it there on a
    way that you trust. It is printed now and never again: the store has its digest only."""
    from nodeseal.authority.live_signer import LiveSigner
    from nodeseal.authority.state_keys import ServiceKeys, StateKeys
    from nodeseal.documents.durations import parse_duration
    from nodeseal.documents.schema import is_name

    if not is_name(node):
        raise CommandError(f"--node {node!a}: a node's name in the mesh state is expected")
    try:
        lifetime = parse_duration(ttl)
    except ValueError as error:
        raise CommandError(f"--ttl: {error}") from None
    if not timedelta(seconds=1) <= lifetime <= LONGEST:
        raise CommandError(f"--ttl {ttl}: from 1s to {LONGEST.days}d is expected: what lies around is found")
    now = datetime.now(UTC)
    settings, ledger = opened(config)
    with ledger:
        signer = LiveSigner(settings.directories.ca, lambda: now)
        pin = StateKeys.load(settings.state, signer.trust_domain, now).pin
        following = ServiceKeys.read(settings.state).next
        token, made = ledger.make_token(node, lifetime, now)
    say(
        output,
        CaTokenMade(
            id=made.id,
            node=node,
            token=token,
            expires=iso(made.expires),
            service_sha256=pin,
            next_sha256=following.pin if following is not None else None,
        ),
        token,
        "",
        f"the token {made.id} is for the node {node}, once, until {shown(made.expires)}",
        f"service key SHA-256 {pin}: what the agent knows the service by",
        *([f"its next key's  {following.pin}: give the agent both"] if following is not None else []),
    )
    return 0
