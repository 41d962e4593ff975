"""`nodeseal ca key next`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting
from nodeseal.cli.ca.key.key_command import tell
from nodeseal.cli.ca.service_command import config_option
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command


@click.command("next", cls=Command)
@config_option
@output_option
@reporting
def command(config: Path, output: str) -> int:
    """Makes the service's next key, which is not used yet, and prints its SHA-256. Give that to every agent beside the
    present one before you use it. One that waits already stays."""
    from nodeseal.authority import service_config
    from nodeseal.authority.state_keys import make_next

    state = service_config.load(config).state
    make_next(state, datetime.now(UTC))
    return tell(output, state, "have both in every agent's `pin`, then: nodeseal ca key switch")
