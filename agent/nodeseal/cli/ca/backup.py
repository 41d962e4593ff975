"""`nodeseal ca backup`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import directory_argument, reporting, say
from nodeseal.cli.ca.service_command import config_option
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaBackup


@click.command("backup", cls=Command)
@directory_argument("a new directory")
@config_option
@output_option
@reporting
def command(directory: Path, config: Path, output: str) -> int:
    """Copies the service's state to DIR while it runs: its keys, what was issued, tokens. DIR can be used as `state`
    itself, so keep it as secret as that. docs/certificate-service.md says how to bring it back."""
    from nodeseal.authority import service_config
    from nodeseal.authority.backup import back_up

    state = service_config.load(config).state
    files = back_up(state, directory)
    say(
        output,
        CaBackup(directory=str(directory), files=files),
        f"copied {state} to {directory}: {', '.join(files)}",
        "it holds private keys: keep it as secret as the state itself",
    )
    return 0
