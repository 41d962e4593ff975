"""`nodeseal status`: this node's workloads, enrolled or why not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from nodeseal.cli import nodes, past_core
from nodeseal.cli.identities import short_identity
from nodeseal.cli.table import duration, note, render_first_that_fits

_BACKENDS = {"ebpf": "eBPF", "iptables": "iptables"}
_LIMITS_SHOWN_S = 600.0
_HEADER = ("WORKLOAD", "ENROLLED", "IDENTITY", "CERT", "CONNS")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `status`."""
    parser = subparsers.add_parser("status", help="this node's workloads: enrolled or why not, identity, certificate")
    nodes.add_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    found = nodes.ask_all(nodes.run_directories(args.run_dir), "status")
    if args.output == "json":
        print(json.dumps({"nodes": [_without_ok(answer) for answer in found.answers]}, indent=2))
    elif found.answers:
        print("\n\n".join(text(answer) for answer in found.answers))
    return found.report_errors()


def _without_ok(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "ok"}


def text(status: dict[str, Any]) -> str:
    """One node's status for a person: what runs, the workloads, and below them what is wrong."""
    core, mesh = status["core"], status["mesh"]
    core_text = f"core {core['state']}" + (f" (pid {core['pid']})" if core["pid"] is not None else "")
    parts = [
        f"node {status['node']}: agent {status['agent']['version']} (pid {status['agent']['pid']}), {core_text}",
        note(f"mesh state {mesh['directory']}, epoch {mesh['epoch']}{_backend(status)}", ""),
        "",
    ]
    workloads = status["workloads"]
    if workloads:
        parts.append(_table(workloads))
    else:
        parts.append("no workload of the mesh state is on this node")
    details = [f"{one['workload']}: {one['detail']}{_retry(one)}" for one in workloads if one["detail"]]
    details += [f"{one['workload']}: {line}" for one in workloads for line in _limits(one.get("limits", {}))]
    details = [*_absence(status["agent"].get("absence")), *_core_details(core, status.get("older_cores", ())), *details]
    details += [*_capture_details(status), *past_core.lines(status)]
    if details:
        parts.append("\n".join(note(detail) for detail in details))
    if mesh["error"]:
        problems = mesh["error"].splitlines()
        head = "the mesh state has a problem" if len(problems) == 1 else f"the mesh state has {len(problems)} problems"
        lines = [f"{head} since {mesh['error_since']}; the last good state stays in force:"]
        parts.append("\n".join([*lines, *(note(problem) for problem in problems)]))
    return "\n".join(parts)


def _limits(limits: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each limit that refused a connection in the last minutes."""
    return [
        f"limit reached: {name.replace('_', ' ')}{_value(name, one['limit'])}, {one['refused']} refused since "
        f"{_clock(one['since'])}"
        for name, one in limits.items()
        if one["last_seconds"] is not None and one["last_seconds"] < _LIMITS_SHOWN_S
    ]


def _value(name: str, limit: int | None) -> str:
    if limit is None:
        return ""
    return f" ({limit / (1 << 20):g} MiB)" if name == "memory" else f" ({limit})"


def _clock(moment: str) -> str:
    """The time of day, here; of another day with its date."""
    local = datetime.fromisoformat(moment).astimezone()
    return f"{local:%H:%M}" if local.date() == datetime.now(UTC).astimezone().date() else f"{local:%Y-%m-%d %H:%M}"


def _absence(absence: dict[str, Any] | None) -> list[str]:
    """Worth a line only if something was missed."""
    if absence is None or not absence["not_enrolled"]:
        return []
    names = absence["not_enrolled"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [
        f"no agent ran from {absence['from']} to {absence['to']}; not enrolled meanwhile: {', '.join(names[:5])}{more}"
    ]


def _core_details(core: dict[str, Any], older: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    if core.get("error"):
        lines.append(f"core: {core['error']}")
    elif core.get("crashes"):
        times = "once" if core["crashes"] == 1 else f"{core['crashes']} times"
        lines.append(f"core: it crashed {times} in the last 10 minutes and was started again; see core.log")
    if core.get("outdated"):
        lines.append(f"core: another one is installed than version {core['version']} that runs: nodeseal upgrade-core")
    for one in older:
        what = "finishes its connections" if one["retired"] else "is being replaced"
        left = (
            f": {one['connections']} left, for {duration(one['seconds'])} so far"
            if one["connections"] is not None
            else ""
        )
        lines.append(f"core of generation {one['generation']} (pid {one['pid']}) {what}{left}")
    return lines


def _backend(status: dict[str, Any]) -> str:
    """An agent of an older version says nothing of it."""
    backend = status.get("capture", {}).get("backend")
    return f"; capture by {_BACKENDS[backend]}" if backend else ""


def _capture_details(status: dict[str, Any]) -> list[str]:
    """Why capture is not by eBPF, and whom the other backend captures still."""
    capture = status.get("capture", {})
    lines = [f"capture is not by eBPF: {capture['why']}"] if capture.get("why") else []
    for one in status["workloads"]:
        backend = one.get("capture")
        if backend and backend != capture.get("backend"):
            lines.append(f"{one['workload']}: captured by {_BACKENDS[backend]} until it leaves the mesh")
    return lines


def _table(workloads: Sequence[dict[str, Any]]) -> str:
    def rows(shorten: bool) -> list[tuple[str, ...]]:
        return [
            (
                one["workload"],
                _enrolled(one),
                _identity(one["identity"], shorten),
                _remaining(one["certificate"]),
                str(one["connections"]),
            )
            for one in workloads
        ]

    return render_first_that_fits(_HEADER, (lambda: rows(False), lambda: rows(True)), right=(3, 4), fold=(0, 1, 2))


def _enrolled(one: dict[str, Any]) -> str:
    """ "yes", "yes, strict", or "no: " and the reason. Permissive goes without saying."""
    if not one["enrolled"]:
        return f"no: {one['reason']}"
    return "yes, strict" if one["mode"] == "strict" else "yes"


def _retry(one: dict[str, Any]) -> str:
    return "" if one["retry_seconds"] is None else f" (next try in {duration(one['retry_seconds'])})"


def _remaining(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "-"
    seconds = certificate["remaining_seconds"]
    return duration(seconds) if seconds > 0 else "expired"


def _identity(identity: str | None, shorten: bool) -> str:
    if identity is None:
        return "-"
    return short_identity(identity) if shorten else identity
