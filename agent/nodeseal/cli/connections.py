"""`nodeseal connections`: who talks with whom, under mutual TLS with which identity, or in plaintext and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from msgspec.structs import asdict

from nodeseal.api.client import ask, ask_connections
from nodeseal.cli import nodes
from nodeseal.cli.errors import UsageError
from nodeseal.cli.identities import shortening
from nodeseal.cli.output import print_json
from nodeseal.cli.table import duration, note, render_first_that_fits, size
from nodeseal.cli.tree import Command
from nodeseal.cli.workloads import Selected, workload_option
from nodeseal.contracts.api import REFUSED
from nodeseal.contracts.connections import ConnectionFilter, Connections, RefusedRow
from nodeseal.contracts.output import NodeConnection, NodeConnections, NodeRefused
from nodeseal.contracts.refusal import in_words

_HEADER = ("DIR", "SOURCE", "DESTINATION", "MTLS WITH", "SENT", "RECEIVED", "AGE")
_TLS_HEADER = ("DIR", "SOURCE", "DESTINATION", "MTLS WITH", "GROUP", "SUITE", "SIGNATURE")
_REFUSED_HEADER = ("DIR", "REFUSED", "SOURCE", "DESTINATION", "TIMES", "SINCE", "LAST", "WHY")
_DIRECTIONS = {"outbound": "out", "inbound": "in"}

Row = TypeVar("Row", bound=NodeConnection | NodeRefused)
Cells = tuple[str, ...]
Shown = Callable[[str], str]
"""How an identity is shown."""
End = Callable[[str, str | None], str]
"""How a source or a destination is, of its address and the workload there."""


@click.command("connections", cls=Command)
@click.option(
    "--live", is_flag=True, help="Leave out those that were closed in the last minute, and peers that were refused."
)
@click.option(
    "--tls",
    is_flag=True,
    help="Show those under mutual TLS, with how each is protected instead of what it carried: the group of the key "
    "exchange, the cipher suite, and how the peer has signed.",
)
@click.option(
    "--anchor",
    metavar="ID",
    help="Only those with peers that were verified by this trust anchor, as `nodeseal trust list` has it; the first 8 "
    "digits are enough.",
)
@workload_option
@nodes.looking_options
def command(
    live: bool, tls: bool, anchor: str | None, workloads: Sequence[str], run_dir: Path | None, output: str
) -> int:
    """Shows the connections of this node's workloads: under mutual TLS with whom, or in plaintext and why; and below
    them the peers that were refused."""
    selected = Selected.of(workloads)
    wanted = ConnectionFilter(live=live, anchor=_fingerprint(anchor) if anchor is not None else None)
    directories = nodes.run_directories(run_dir)
    found = nodes.ask_all(directories, lambda path: _ask(path, wanted))
    rows = [
        NodeConnection(node=one.node, run_dir=one.run_dir, **asdict(row))
        for one in found.answers
        for row in one.says.connections.connections
        if row.workload in selected
    ]
    refused = [
        NodeRefused(node=one.node, run_dir=one.run_dir, **asdict(row))
        for one in found.answers
        for row in one.says.refused
        if row.workload in selected
    ]
    errors = [error for one in found.answers for error in one.says.connections.errors]
    if output == "json":
        print_json(NodeConnections(connections=rows, refused=refused, errors=[*errors, *found.errors]))
    elif found.answers:
        domains = [one.says.connections.trust_domain for one in found.answers]
        print(text(rows, several_nodes=len(directories) > 1, trust_domains=domains, tls=tls))
        if refused:
            print(f"\n{refused_text(refused, several_nodes=len(directories) > 1, trust_domains=domains)}")
        for error in errors:
            print(note(error))
    return found.report_errors()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one agent says."""

    connections: Connections
    refused: list[RefusedRow]

    @property
    def node(self) -> str:
        """The node's name."""
        return self.connections.node


def _ask(run_dir: Path, wanted: ConnectionFilter) -> _Seen:
    seen = ask_connections(run_dir, wanted)
    # A peer that was refused was verified by nobody.
    alone = wanted.live or wanted.anchor is not None
    return _Seen(seen, [] if alone else ask(run_dir, REFUSED).refused)


def _fingerprint(text: str) -> str:
    """As the agents take it. Raises UsageError."""
    digits = text.replace(":", "").lower()
    if re.fullmatch("[0-9a-f]{8,64}", digits) is None:
        raise UsageError(
            f"{text[:80]!a} is no ID of a trust anchor: give 8 to 64 digits of it, as in `nodeseal trust list`"
        )
    return digits


def text(
    rows: Sequence[NodeConnection], *, several_nodes: bool, trust_domains: Iterable[str] = (), tls: bool = False
) -> str:
    """The table: live connections first, the oldest first; then those that were closed, the latest first.

    `trust_domains`: those of the nodes that the rows are from; without them every identity is whole. `tls`: those
    under mutual TLS alone, with how they are protected instead of what they carried.
    """
    if tls:
        rows = [row for row in rows if row.mtls]
    if not rows:
        return "no connections under mutual TLS" if tls else "no connections"
    ordered = sorted(rows, key=_order)
    columns = _TLS_HEADER if tls else _HEADER
    header = ("NODE", *columns) if several_nodes else columns

    def variant(identity: Shown, source: End, destination: End) -> Callable[[], list[Cells]]:
        def cells(row: NodeConnection) -> Cells:
            return (
                _DIRECTIONS[row.direction],
                source(row.source, row.source_workload),
                destination(row.destination, row.destination_workload),
                _security(row, identity),
                *(_protection(row) if tls else (size(row.bytes_sent), size(row.bytes_received), _age(row))),
            )

        return _each(ordered, cells, several_nodes)

    short = shortening(trust_domains)
    variants = (
        variant(str, _full, _full),
        variant(short, _full, _full),
        variant(short, _short, _full),
        variant(short, _short, _short),
        variant(short, _named, _short),
    )
    shift = 1 if several_nodes else 0
    fold = (0, 2, 3, 4) if several_nodes else (1, 2, 3)
    return render_first_that_fits(header, variants, right=() if tls else (4 + shift, 5 + shift), fold=fold)


def refused_text(rows: Sequence[NodeRefused], *, several_nodes: bool, trust_domains: Iterable[str] = ()) -> str:
    """The table of refused peers, of a day: those that were refused lately first. Outbound ("out") are handshakes that
    a workload of this node began, and that failed."""
    short = shortening(trust_domains)
    ordered = sorted(rows, key=lambda row: row.last_seconds)

    def variant(identity: Shown, source: End, destination: End) -> Callable[[], list[Cells]]:
        def cells(row: NodeRefused) -> Cells:
            return (
                _DIRECTIONS[row.direction],
                f"{row.kind} {row.status}" if row.status else row.kind,
                source(row.source, row.source_workload),
                destination(row.destination, row.destination_workload),
                str(row.count),
                duration(row.first_seconds),
                duration(row.last_seconds),
                f"{row.reason} ({identity(row.peer)})"
                if row.peer
                else in_words(row.reason, _shown(row.presented, identity), _shown(row.expected, identity)),
            )

        return _each(ordered, cells, several_nodes)

    variants = (
        variant(str, _full, _full),
        variant(short, _full, _full),
        variant(short, _full, _short),
        variant(short, _named, _short),
    )
    shift = 1 if several_nodes else 0
    header = ("NODE", *_REFUSED_HEADER) if several_nodes else _REFUSED_HEADER
    fold = tuple(column + shift for column in (2, 3, 7))
    return render_first_that_fits(header, variants, right=(4 + shift,), fold=fold)


def _each(rows: Sequence[Row], cells: Callable[[Row], Cells], several_nodes: bool) -> Callable[[], list[Cells]]:
    """The lines of a table, with the node first when there are several; made when they are asked for."""

    def lines() -> list[Cells]:
        return [(row.node, *cells(row)) if several_nodes else cells(row) for row in rows]

    return lines


def _order(row: NodeConnection) -> tuple[bool, float, str]:
    if row.state == "closed":
        return True, row.closed_seconds or 0.0, row.source
    age = row.age_seconds
    return False, -age if age is not None else float("-inf"), row.source


def _full(address: str, name: str | None) -> str:
    """ "shipper 10.77.1.2:43512": the name and the address."""
    return f"{_bare(name)} {address}" if name else address or "-"


def _short(address: str, name: str | None) -> str:
    """ "shipper:43512": the name instead of the address, where there is one."""
    return f"{_bare(name)}:{address.rpartition(':')[2]}" if name else address or "-"


def _named(address: str, name: str | None) -> str:
    """ "shipper", without the port, which of a client nobody looks for; or the address."""
    return _bare(name) if name else address or "-"


def _bare(name: str) -> str:
    return name.removeprefix("default/")


def _security(row: NodeConnection, identity: Callable[[str], str]) -> str:
    if row.mtls:
        # The core gives a reason only for the end of a connection that failed: refused, or cut.
        failed = f", failed: {row.reason}" if row.reason else ""
        return f"{identity(row.peer or '?')}{failed}"
    if row.state in ("deciding", "connecting"):
        return f"({row.state})"
    return f"no: {row.reason or 'unknown'}"


def _protection(row: NodeConnection) -> Cells:
    """Group, suite and signature; the suite without what all of them begin with."""
    suite = (row.tls or "-").removeprefix("TLSv1.3 ").removeprefix("TLS_")
    return row.group or "-", suite, row.signature or "-"


def _shown(name: str | None, identity: Shown) -> str | None:
    return identity(name) if name else None


def _age(row: NodeConnection) -> str:
    if row.state == "closed":
        return f"closed {duration(row.closed_seconds)}"
    return duration(row.age_seconds)
