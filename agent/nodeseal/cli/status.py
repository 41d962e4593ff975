"""`nodeseal status`: this node's workloads, enrolled or why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from nodeseal.cli import nodes, past_core
from nodeseal.cli.identities import short_identity
from nodeseal.cli.output import OutputError
from nodeseal.cli.table import duration, note, render_first_that_fits
from nodeseal.cli.tree import Command
from nodeseal.mesh.reasons import ProblemWord, WhyNotEnrolled

_BACKENDS = {"ebpf": "eBPF", "iptables": "iptables"}
_EXIT_STATUS = {"ok": 0, "warning": 1, "error": 2}
_CHECK_SHOWN = 3
_ON_THEIR_WAY = (WhyNotEnrolled.PENDING, WhyNotEnrolled.JOINING, WhyNotEnrolled.LEAVING)
"""What passes by itself. If it does not, the agent lists it among the problems."""
_IN_FORCE = {
    "present": "it is used as far as it is good",
    "former": "the last good state stays in force",
    "none": "there never was a good one, so nothing is enrolled",
}
_MESH_WORDS = (
    ProblemWord.MESH_STATE,
    ProblemWord.NO_MESH_STATE,
    ProblemWord.PUBLICATION,
    ProblemWord.UNREAD_FILE,
)
"""Shown line by line at the end."""
_HEADER = ("WORKLOAD", "ENROLLED", "IDENTITY", "CERT", "CONNS")


@click.command("status", cls=Command)
@click.option(
    "--check",
    is_flag=True,
    help="For monitoring: one line, and an exit status: 0 all is well, 1 something will be wrong or may be, 2 "
    "something is wrong (also when no agent answers).",
)
@nodes.looking_options
def command(check: bool, run_dir: Path | None, output: str) -> int:
    """Shows this node's workloads: whether each is enrolled, or why not; its identity and how long its certificate is
    valid; and below them what is wrong with the node."""
    directories = nodes.run_directories(run_dir)
    found = nodes.ask_all(directories, "status")
    if check:
        return _check(found, output)
    if output == "json":
        answers = [_without_ok(answer) for answer in found.answers]
        print(json.dumps({"nodes": answers, "errors": found.errors}, indent=2))
    elif found.answers:
        print("\n\n".join(text(answer) for answer in found.answers))
    return found.report_errors()


def _check(found: nodes.Answers, output: str) -> int:
    problems: list[dict[str, Any]] = []
    for answer in found.answers:
        # An agent that was not restarted after an upgrade may be of a version that knows of no list.
        listed = answer.get("problems", [_no_agent("the agent is of an older version; restart it")])
        problems += [{"node": answer["node"], **one} for one in listed]
    problems += [{"node": None, **_no_agent(error)} for error in found.errors]
    problems.sort(key=lambda one: str(one["level"]))
    level = problems[0]["level"] if problems else "ok"
    if output == "json":
        _tell(json.dumps({"level": level, "problems": problems}, indent=2))
    else:
        _tell(check_line(level, problems, found.answers))
    return _EXIT_STATUS[level]


def _tell(text: str) -> None:
    """Monitoring that cannot be told must not take it for a warning."""
    try:
        print(text, flush=True)
    except OutputError as error:
        error.status = _EXIT_STATUS["error"]
        raise


def _no_agent(text: str) -> dict[str, Any]:
    word = ProblemWord.NO_AGENT
    return {"word": word.value, "level": word.level.value, "about": None, "text": text, "remedy": word.remedy}


def check_line(level: str, problems: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> str:
    """The one line of `--check`: the level, then the worst problems, or what is well."""
    if not problems:
        names = ", ".join(answer["node"] for answer in answers)
        workloads = [one for answer in answers for one in answer["workloads"]]
        count = sum(one["enrolled"] for one in workloads)
        on_their_way = [(word, sum(one["reason"] == word for one in workloads)) for word in _ON_THEIR_WAY]
        others = "".join(f", {number} {word}" for word, number in on_their_way if number)
        return f"{level}: {names}: {count} workload{'s' if count != 1 else ''} enrolled{others}"
    shown = [
        f"{one['node']}: {one['word']}: {one['text']}" if one["node"] else f"{one['word']}: {one['text']}"
        for one in problems[:_CHECK_SHOWN]
    ]
    more = f"; and {len(problems) - _CHECK_SHOWN} more" if len(problems) > _CHECK_SHOWN else ""
    return f"{level}: {'; '.join(shown)}{more}"


def _without_ok(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "ok"}


def text(status: dict[str, Any]) -> str:
    """One node's status for a person: what runs, the workloads, and below them what is wrong."""
    core, mesh = status["core"], status["mesh"]
    starting = status["agent"].get("starting")
    state = f", starting for {duration(starting['seconds'])}" if starting else ""
    # A core that runs and has an error was asked for its counters just now, and did not tell them.
    core_state = "does not answer" if core["state"] == "running" and core["error"] else core["state"]
    core_text = f"core {core_state}" + (f" (pid {core['pid']})" if core["pid"] is not None else "")
    listed = [one for one in status.get("problems", ()) if one["word"] not in _MESH_WORDS]
    parts = [
        # What `capture: auto` had to do without concerns all that follows.
        *(note(_problem(one), "") for one in listed if one["word"] == ProblemWord.CAPTURE_FALLBACK),
        f"node {status['node']}: agent {status['agent']['version']} (pid {status['agent']['pid']}{state}), {core_text}",
        note(f"mesh state {mesh['source']}, epoch {mesh['epoch']}{_backend(status)}", ""),
        "",
    ]
    workloads = status["workloads"]
    if workloads:
        parts.append(_table(workloads))
    elif not starting:
        parts.append("no workload of the mesh state is on this node")
    details = [*_absence(status["agent"].get("absence")), *_older_cores(status.get("older_cores", ()))]
    details += [*_draining(workloads), *_captured_otherwise(status), *past_core.lines(status)]
    details = [*(_problem(one) for one in listed if one["word"] != ProblemWord.CAPTURE_FALLBACK), *details]
    if details:
        parts.append("\n".join(note(detail) for detail in details))
    if mesh["error"]:
        problems = mesh["error"].splitlines()
        head = "the mesh state has a problem" if len(problems) == 1 else f"the mesh state has {len(problems)} problems"
        lines = [f"{head} since {mesh['error_since']}; {_IN_FORCE[mesh.get('in_force') or 'former']}:"]
        parts.append("\n".join([*lines, *(note(problem) for problem in problems)]))
    return "\n".join(parts)


def _problem(one: dict[str, Any]) -> str:
    """With its word, by which docs/words.md tells more."""
    return f"{one['word']}: {one['text']}; {one['remedy']}"


def _absence(absence: dict[str, Any] | None) -> list[str]:
    """Worth a line only if something was missed."""
    if absence is None or not absence["not_enrolled"]:
        return []
    names = absence["not_enrolled"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [
        f"no agent ran from {absence['from']} to {absence['to']}; not enrolled meanwhile: {', '.join(names[:5])}{more}"
    ]


def _older_cores(older: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for one in older:
        what = "finishes its connections" if one["retired"] else "is being replaced"
        left = (
            f": {one['connections']} left, for {duration(one['seconds'])} so far"
            if one["connections"] is not None
            else ""
        )
        lines.append(f"core of generation {one['generation']} (pid {one['pid']}) {what}{left}")
    return lines


def _draining(workloads: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{one['workload']}: {one['detail']}" for one in workloads if one.get("draining") and one["detail"]]


def _backend(status: dict[str, Any]) -> str:
    """An agent of an older version says nothing of it."""
    backend = status.get("capture", {}).get("backend")
    return f"; capture by {_BACKENDS[backend]}" if backend else ""


def _captured_otherwise(status: dict[str, Any]) -> list[str]:
    """Whom another backend than that of new workloads captures still."""
    now = status.get("capture", {}).get("backend")
    return [
        f"{one['workload']}: captured by {_BACKENDS[backend]} until it leaves the mesh"
        for one in status["workloads"]
        if (backend := one.get("capture")) and backend != now
    ]


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


def _remaining(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "-"
    seconds = certificate["remaining_seconds"]
    return duration(seconds) if seconds > 0 else "expired"


def _identity(identity: str | None, shorten: bool) -> str:
    if identity is None:
        return "-"
    return short_identity(identity) if shorten else identity
