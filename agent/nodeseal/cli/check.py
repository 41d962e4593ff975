"""`nodeseal check`: what this machine has, which capture backend would be used, and what that one does not promise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeseal.cli.errors import CommandError
from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.progress import waiting
from nodeseal.cli.table import folded
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import Feature, MachineCheck

if TYPE_CHECKING:
    from nodeseal.daemon.check import Findings

_STATE_WIDTH = 9


@click.command("check", cls=Command)
@click.option("--config", type=PATH, metavar="FILE", help="The agent's configuration; default: the defaults.")
@output_option
def command(config: Path | None, output: str) -> int:
    """Tries everything that nodeseal needs of this machine, in network namespaces made for it, and says what is
    missing, which capture backend an agent would use here, and what that one does not promise. Run it as root. The exit
    status is 0 when an agent could capture here."""
    from nodeseal.daemon.check import check
    from nodeseal.daemon.verify import load_verified
    from nodeseal.local.config import ConfigError

    try:
        settings = load_verified(config) if config is not None else None
    except ConfigError as error:
        raise CommandError(str(error)) from None
    with waiting("trying what this machine has"):
        found = check(settings)
    if output == "json":
        print_json(row(found))
    else:
        print(text(found))
    return 0 if found.chosen is not None else 1


def row(found: Findings) -> MachineCheck:
    """The findings for a script."""
    return MachineCheck(
        features=[Feature(**asdict(feature)) for feature in found.features],
        wanted=found.wanted.value,
        chosen=found.chosen,
        why=found.why,
        reservations=list(found.reservations),
        warnings=list(found.warnings),
    )


def text(found: Findings) -> str:
    """The findings for a person: a line for each feature, then the conclusion."""
    width = max(len(feature.name) for feature in found.features)
    lines = []
    for use, heading in (("both", "for any backend"), ("ebpf", "for eBPF"), ("iptables", "for iptables")):
        lines.append(f"{heading}:")
        for feature in found.features:
            if feature.use == use:
                state = "ok" if feature.found else "missing" if feature.needed else "without"
                lines += _fold(f"  {state:<{_STATE_WIDTH}}{feature.name:<{width}}  ", feature.detail)
        lines.append("")
    if found.chosen is not None:
        lines += _fold(f"capture by {found.chosen} (capture: {found.wanted.value}): ", found.why, 2)
        lines.append("not promised:")
        for sentence in found.reservations:
            lines += _fold("  - ", sentence)
        if found.warnings:
            lines.append("will not work as it is configured:")
        for sentence in found.warnings:
            lines += _fold("  - ", sentence)
    else:
        lines += _fold(f"no capture here (capture: {found.wanted.value}): ", found.why, 2)
    return "\n".join(lines)


def _fold(head: str, sentence: str, indent: int | None = None) -> list[str]:
    """Behind `head`; the later lines further in."""
    return folded(sentence, head, " " * (len(head) if indent is None else indent))
