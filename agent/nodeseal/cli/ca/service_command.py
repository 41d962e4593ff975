"""What the commands beside `nodeseal ca serve` have: its configuration, its store, its times."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeseal.cli.options import PATH

if TYPE_CHECKING:
    from nodeseal.authority.ledger import Ledger
    from nodeseal.authority.service_config import ServiceConfig

config_option = click.option(
    "--config",
    type=PATH,
    default=Path("/etc/nodeseal/ca.yaml"),
    show_default=True,
    metavar="FILE",
    help="The service's configuration.",
)


def opened(path: Path) -> tuple[ServiceConfig, Ledger]:
    """The configuration and the store that it names, which is made if it is not there. Raises AuthorityError."""
    from nodeseal.authority import service_config, state_keys
    from nodeseal.authority.ledger import Ledger

    config = service_config.load(path)
    state_keys.prepare(config.state)
    return config, Ledger(config.state)


def iso(when: datetime) -> str:
    """For a script."""
    return when.isoformat(timespec="seconds")


def shown(when: datetime | None) -> str:
    """For a person."""
    return f"{when:%Y-%m-%d %H:%MZ}" if when is not None else "-"
