"""`nodeseal ca key switch`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting
from nodeseal.cli.ca.key.key_command import tell
from nodeseal.cli.ca.service_command import config_option
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command


@click.command("switch", cls=Command)
@click.option("--back", is_flag=True, help="Use the former one again; the present one is the next then.")
@config_option
@output_option
@reporting
def command(back: bool, config: Path, output: str) -> int:
    """Has the service use its next key. It does so within seconds, and is not restarted; nor are those that stand by.
    An agent that does not know the key yet has no service until then: --back helps it."""
    from nodeseal.authority import service_config
    from nodeseal.authority.state_keys import switch

    state = service_config.load(config).state
    switch(state, back=back)
    return tell(output, state)
