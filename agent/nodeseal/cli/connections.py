"""`nodeseal connections`: who talks with whom, under mutual TLS with which identity, or in plaintext and why."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from nodeseal.cli import nodes
from nodeseal.cli.status import short_identity
from nodeseal.cli.table import duration, note, render_first_that_fits, size

_HEADER = ("DIR", "SOURCE", "DESTINATION", "MTLS WITH", "SENT", "RECEIVED", "AGE")
_DIRECTIONS = {"outbound": "out", "inbound": "in"}

Row = dict[str, Any]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `connections`."""
    parser = subparsers.add_parser(
        "connections", help="connections of this node's workloads: mTLS with whom, or plaintext and why"
    )
    parser.add_argument("--live", action="store_true", help="leave out those that were closed in the last minute")
    nodes.add_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    directories = nodes.run_directories(args.run_dir)
    found = nodes.ask_all(directories, "connections")
    rows = [
        {"node": answer["node"], "run_dir": answer["run_dir"], **row}
        for answer in found.answers
        for row in answer["connections"]
        if not (args.live and row["state"] == "closed")
    ]
    errors = [error for answer in found.answers for error in answer.get("errors", [])]
    if args.output == "json":
        print(json.dumps({"connections": rows, "errors": errors}, indent=2))
    elif found.answers:
        print(text(rows, several_nodes=len(directories) > 1))
        for error in errors:
            print(note(error))
    return found.report_errors()


def text(rows: Sequence[Row], *, several_nodes: bool) -> str:
    """The table: live connections first, the oldest first; then those that were closed, the latest first."""
    if not rows:
        return "no connections"
    ordered = sorted(rows, key=_order)
    header = ("NODE", *_HEADER) if several_nodes else _HEADER

    def variant(
        identity: Callable[[str], str], source: Callable[[Row], str], destination: Callable[[Row], str]
    ) -> Callable[[], list[tuple[str, ...]]]:
        def rows_of() -> list[tuple[str, ...]]:
            cells: list[tuple[str, ...]] = []
            for row in ordered:
                line = (
                    _DIRECTIONS[row["direction"]],
                    source(row),
                    destination(row),
                    _security(row, identity),
                    size(row["bytes_sent"]),
                    size(row["bytes_received"]),
                    _age(row),
                )
                cells.append((row["node"], *line) if several_nodes else line)
            return cells

        return rows_of

    variants = (
        variant(str, _full("source"), _full("destination")),
        variant(short_identity, _full("source"), _full("destination")),
        variant(short_identity, _short("source"), _full("destination")),
        variant(short_identity, _short("source"), _short("destination")),
        variant(short_identity, _shortest("source"), _shortest("destination")),
        variant(short_identity, _squeezed("source"), _squeezed("destination")),
    )
    shift = 1 if several_nodes else 0
    return render_first_that_fits(header, variants, right=(4 + shift, 5 + shift), narrow=3 + shift)


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


def _squeezed(end: str) -> Callable[[Row], str]:
    """The same, and of a long IPv6 address its beginning and end only: "[2001:db8:…:5678]:443"."""

    def cell(row: Row) -> str:
        text = _shortest(end)(row)
        host, bracket, port = text.rpartition("]")
        groups = host.removeprefix("[").split(":")
        if not bracket or len(host) <= 20:
            return text
        return f"[{groups[0]}:{groups[1]}:…:{groups[-1]}]{port}"

    return cell


def _bare(name: str) -> str:
    return name.removeprefix("default/")


def _security(row: Row, identity: Callable[[str], str]) -> str:
    if row["mtls"]:
        return identity(row["peer"] or "?")
    if row["state"] in ("deciding", "connecting"):
        return f"({row['state']})"
    return f"no: {row['reason'] or 'unknown'}"


def _age(row: Row) -> str:
    if row["state"] == "closed":
        return f"closed {duration(row['closed_seconds'])}"
    return duration(row["age_seconds"])
