"""`nodeseal ca serve`."""

from __future__ import annotations

from pathlib import Path

import click

from nodeseal.cli.ca.ca_command import reporting
from nodeseal.cli.ca.service_command import config_option
from nodeseal.cli.tree import Command


@click.command("serve", cls=Command)
@config_option
@reporting
def command(config: Path) -> int:
    """Runs the certificate service: agents get the certificates of the workloads on their own node from it, over HTTPS,
    so that no node needs the CA's key. A second one for the same state stands by, and takes over when the first one
    ends."""
    from nodeseal.daemon.ca_service import run

    return run(config)
