"""`nodeseal check`: what this machine has, which capture backend would be used, and what that one does not promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from nodeseal.api.client import AgentError, ask
from nodeseal.cli.errors import CommandError
from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.progress import waiting
from nodeseal.cli.table import duration, folded
from nodeseal.cli.tree import Command
from nodeseal.cli.workloads import Selected, workload_option
from nodeseal.contracts.api import STATUS
from nodeseal.contracts.output import Feature, MachineCheck, StrictRefusal

if TYPE_CHECKING:
    from nodeseal.daemon.check import Findings

_STATE_WIDTH = 9


@click.command("check", cls=Command)
@click.option("--config", type=PATH, metavar="FILE", help="The agent's configuration; default: the defaults.")
@workload_option
@output_option
def command(config: Path | None, workloads: Sequence[str], output: str) -> int:
    """Tries everything that nodeseal needs of this machine, in network namespaces made for it, and says what is
    missing, which capture backend an agent would use here, and what that one does not promise. With --config it asks
    the agent, if one runs, which clients its permissive workloads have had without mutual TLS in the last day: strict
    mode would refuse them. Run it as root. The exit status is 0 when an agent could capture here."""
    from nodeseal.daemon.check import check
    from nodeseal.daemon.verify import load_verified
    from nodeseal.local.config import ConfigError

    try:
        settings = load_verified(config) if config is not None else None
    except ConfigError as error:
        raise CommandError(str(error)) from None
    selected = Selected.of(workloads)
    with waiting("trying what this machine has"):
        found = check(settings)
    shown = row(found)
    if settings is not None:
        refuses, unknown = strict_refuses(settings.run_dir, selected)
        shown = replace(shown, strict_refuses=refuses, strict_unknown=unknown)
    if output == "json":
        print_json(shown)
    else:
        print(text(found))
        if settings is not None:
            print("\n".join(strict_text(shown)))
    return 0 if found.chosen is not None else 1


def strict_refuses(run_dir: Path, selected: Selected) -> tuple[list[StrictRefusal], str | None]:
    """What the agent has seen; and why that may not be all."""
    try:
        status = ask(run_dir, STATUS)
    except AgentError as error:
        return [], str(error)
    found, blind = [], []
    for one in status.workloads:
        if one.workload not in selected or one.mode != "permissive" or one.phase == "absent":
            continue
        if one.capture == "iptables":
            blind.append(one.workload)
        for client in one.plain_clients:
            number, last = client.connections, client.last_seconds
            found.append(StrictRefusal(one.workload, client.address, client.workload, number, last))
    if status.agent.starting is not None:
        return found, "the agent is starting"
    return found, f"captured by iptables, which notes no clients: {', '.join(blind)}" if blind else None


def strict_text(shown: MachineCheck) -> list[str]:
    """The lines about it."""
    lines = []
    if shown.strict_refuses:
        lines.append("strict mode would refuse these clients, seen without mTLS in the last day:")
    for one in shown.strict_refuses:
        client = f"{one.address} ({one.client})" if one.client else one.address
        s = "" if one.connections == 1 else "s"
        said = f"{client}, {one.connections} connection{s}, the last {duration(one.last_seconds)} ago"
        lines += _fold(f"  - {one.workload}: ", said)
    if shown.strict_unknown is not None:
        lines += _fold("strict mode may refuse others: ", shown.strict_unknown, 2)
    elif not shown.strict_refuses:
        lines.append("strict mode would refuse no client that was seen in the last day")
    return lines


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
