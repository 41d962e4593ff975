"""`nodeseal connections`: who talks with whom, under mutual TLS with which identity, or in plaintext and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from nodeseal.cli import nodes
from nodeseal.cli.identities import shortening
from nodeseal.cli.table import duration, note, render_first_that_fits, size
from nodeseal.cli.tree import Command

_HEADER = ("DIR", "SOURCE", "DESTINATION", "MTLS WITH", "SENT", "RECEIVED", "AGE")
_REFUSED_HEADER = ("DIR", "REFUSED", "SOURCE", "DESTINATION", "TIMES", "SINCE", "LAST", "WHY")
_DIRECTIONS = {"outbound": "out", "inbound": "in"}

Row = dict[str, Any]
Cells = tuple[str, ...]
Shown = Callable[[str], str]
"""How an identity is shown."""
End = Callable[[Row], str]
"""How a source or a destination is."""


@click.command("connections", cls=Command)
@click.option(
    "--live", is_flag=True, help="Leave out those that were closed in the last minute, and peers that were refused."
)
@nodes.looking_options
def command(live: bool, run_dir: Path | None, output: str) -> int:
    """Shows the connections of this node's workloads: under mutual TLS with whom, or in plaintext and why; and below
    them the peers that were refused."""
    directories = nodes.run_directories(run_dir)
    found = nodes.ask_all(directories, "connections")
    rows = [row for row in _rows(found.answers, "connections") if not (live and row["state"] == "closed")]
    refused = [] if live else _rows(found.answers, "refused")
    errors = [error for answer in found.answers for error in answer.get("errors", [])]
    if output == "json":
        print(json.dumps({"connections": rows, "refused": refused, "errors": [*errors, *found.errors]}, indent=2))
    elif found.answers:
        # An agent of an older version does not say its own: then no identity is shortened.
        domains = [answer.get("trust_domain", "") for answer in found.answers]
        print(text(rows, several_nodes=len(directories) > 1, trust_domains=domains))
        if refused:
            print(f"\n{refused_text(refused, several_nodes=len(directories) > 1, trust_domains=domains)}")
        for error in errors:
            print(note(error))
    return found.report_errors()


def _rows(answers: Iterable[dict[str, Any]], key: str) -> list[Row]:
    """Of all nodes; an agent of an older version knows nothing of refusals."""
    return [
        {"node": answer["node"], "run_dir": answer["run_dir"], **row}
        for answer in answers
        for row in answer.get(key, [])
    ]


def text(rows: Sequence[Row], *, several_nodes: bool, trust_domains: Iterable[str] = ()) -> str:
    """The table: live connections first, the oldest first; then those that were closed, the latest first.

    `trust_domains`: those of the nodes that the rows are from; without them every identity is whole.
    """
    if not rows:
        return "no connections"
    ordered = sorted(rows, key=_order)
    header = ("NODE", *_HEADER) if several_nodes else _HEADER

    def variant(identity: Shown, source: End, destination: End) -> Callable[[], list[Cells]]:
        def cells(row: Row) -> Cells:
            return (
                _DIRECTIONS[row["direction"]],
                source(row),
                destination(row),
                _security(row, identity),
                size(row["bytes_sent"]),
                size(row["bytes_received"]),
                _age(row),
            )

        return _each(ordered, cells, several_nodes)

    short = shortening(trust_domains)
    variants = (
        variant(str, _full("source"), _full("destination")),
        variant(short, _full("source"), _full("destination")),
        variant(short, _short("source"), _full("destination")),
        variant(short, _short("source"), _short("destination")),
        variant(short, _shortest("source"), _shortest("destination")),
    )
    shift = 1 if several_nodes else 0
    fold = (0, 2, 3, 4) if several_nodes else (1, 2, 3)
    return render_first_that_fits(header, variants, right=(4 + shift, 5 + shift), fold=fold)


def refused_text(rows: Sequence[Row], *, several_nodes: bool, trust_domains: Iterable[str] = ()) -> str:
    """The table of refused peers, of a day: those that were refused lately first. Outbound ("out") are handshakes that
    a workload of this node began, and that failed."""
    short = shortening(trust_domains)
    ordered = sorted(rows, key=lambda row: float(row["last_seconds"]))

    def variant(identity: Shown, source: End, destination: End) -> Callable[[], list[Cells]]:
        def cells(row: Row) -> Cells:
            return (
                _DIRECTIONS[row["direction"]],
                f"{row['kind']} {row['status']}" if row["status"] else row["kind"],
                source(row),
                destination(row),
                str(row["count"]),
                duration(row["first_seconds"]),
                duration(row["last_seconds"]),
                f"{row['reason']} ({identity(row['peer'])})" if row["peer"] else row["reason"],
            )

        return _each(ordered, cells, several_nodes)

    variants = (
        variant(str, _full("source"), _full("destination")),
        variant(short, _full("source"), _full("destination")),
        variant(short, _full("source"), _short("destination")),
        variant(short, _named("source"), _short("destination")),
    )
    shift = 1 if several_nodes else 0
    header = ("NODE", *_REFUSED_HEADER) if several_nodes else _REFUSED_HEADER
    fold = tuple(column + shift for column in (2, 3, 7))
    return render_first_that_fits(header, variants, right=(4 + shift,), fold=fold)


def _each(rows: Sequence[Row], cells: Callable[[Row], Cells], several_nodes: bool) -> Callable[[], list[Cells]]:
    """The lines of a table, with the node first when there are several; made when they are asked for."""
    return lambda: [(row["node"], *cells(row)) if several_nodes else cells(row) for row in rows]


def _order(row: Row) -> tuple[bool, float, str]:
    closed = row["state"] == "closed"
    if closed:
        return True, row["closed_seconds"] or 0.0, row["source"]
    age = row["age_seconds"]
    return False, -age if age is not None else float("-inf"), row["source"]


def _full(end: str) -> Callable[[Row], str]:
    """ "shipper 10.77.1.2:43512": the name and the address."""

    def cell(row: Row) -> str:
        name = row[f"{end}_workload"]
        return f"{_bare(name)} {row[end]}" if name else row[end] or "-"

    return cell


def _short(end: str) -> Callable[[Row], str]:
    """ "shipper:43512": the name instead of the address, where there is one."""

    def cell(row: Row) -> str:
        name, address = row[f"{end}_workload"], row[end]
        return f"{_bare(name)}:{address.rpartition(':')[2]}" if name else address or "-"

    return cell


def _shortest(end: str) -> Callable[[Row], str]:
    """The same, without the port of a client, which nobody looks for in a table."""

    def cell(row: Row) -> str:
        name = row[f"{end}_workload"]
        return _bare(name) if name and end == "source" else _short(end)(row)

    return cell


def _named(end: str) -> Callable[[Row], str]:
    """The name, or the address where there is none."""

    def cell(row: Row) -> str:
        name = row[f"{end}_workload"]
        return _bare(name) if name else row[end] or "-"

    return cell


def _bare(name: str) -> str:
    return name.removeprefix("default/")


def _security(row: Row, identity: Callable[[str], str]) -> str:
    if row["mtls"]:
        # The core gives a reason only for the end of a connection that failed: refused, or cut.
        failed = f", failed: {row['reason']}" if row["reason"] else ""
        return f"{identity(row['peer'] or '?')}{failed}"
    if row["state"] in ("deciding", "connecting"):
        return f"({row['state']})"
    return f"no: {row['reason'] or 'unknown'}"


def _age(row: Row) -> str:
    if row["state"] == "closed":
        return f"closed {duration(row['closed_seconds'])}"
    return duration(row["age_seconds"])
