"""Options that all commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Callback = Callable[..., Any]
"""What a command runs."""

PATH = click.Path(path_type=Path)

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="Print for people, or for scripts.",
)
