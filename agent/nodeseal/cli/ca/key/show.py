"""`nodeseal ca key show`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting
from nodeseal.cli.ca.key.key_command import tell
from nodeseal.cli.ca.service_command import config_option
from nodeseal.cli.options import output_option
from nodeseal.cli.tree import Command


@click.command("show", cls=Command)
@click.option(
    "--certificates", is_flag=True, help="Print the certificates of the present and the next, for agents with `anchor`."
)
@config_option
@output_option
@reporting
def command(certificates: bool, config: Path, output: str) -> int:
    """Shows the SHA-256 of the service's key, which agents have as `pin`, and those of the next and the former one."""
    from nodeseal.authority import service_config
    from nodeseal.authority.certificates import pem
    from nodeseal.authority.state_keys import ServiceKeys

    state = service_config.load(config).state
    if not certificates:
        return tell(output, state)
    keys = ServiceKeys.read(state)
    for one in (keys.present, keys.next):
        if one is not None:
            print(pem(one.certificate), end="")
    return 0
