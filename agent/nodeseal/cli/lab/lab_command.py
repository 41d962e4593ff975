"""What every command of `nodeseal lab` has."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from nodeseal.cli.errors import CommandError, UsageError
from nodeseal.cli.options import Callback
from nodeseal_lab.errors import LabError, LabPlanError
from nodeseal_lab.plan import DEFAULT_NAME

_INTERRUPTED = 130


def name_option(default: str = DEFAULT_NAME) -> Callable[[Callback], Callback]:
    """--name, which lab."""
    return click.option("--name", default=default, show_default=True, metavar="NAME", help="The lab's name.")


def reporting(callback: Callback) -> Callback:
    """What is the user's to know is a line of the command's."""

    @functools.wraps(callback)
    def reported(*args: Any, **options: Any) -> Any:
        try:
            return callback(*args, **options)
        except KeyboardInterrupt:
            print("nodeseal: interrupted", file=sys.stderr)
            return _INTERRUPTED
        except LabPlanError as error:
            raise UsageError(str(error)) from None
        except LabError as error:
            raise CommandError(str(error)) from None

    return reported
