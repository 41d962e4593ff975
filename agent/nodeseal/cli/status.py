"""`nodeseal status`: this node's workloads, enrolled or why not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from msgspec.structs import asdict, replace

from nodeseal.api.client import ask
from nodeseal.cli import nodes, past_core
from nodeseal.cli.errors import UsageError
from nodeseal.cli.identities import short_identity
from nodeseal.cli.output import OutputError, print_json
from nodeseal.cli.table import duration, note, render_first_that_fits
from nodeseal.cli.tree import Command
from nodeseal.cli.workloads import Selected, workload_option
from nodeseal.contracts.api import STATUS
from nodeseal.contracts.output import NodeProblem, NodeStatuses, StatusCheck
from nodeseal.contracts.status import AbsenceRow, Certificate, CoreRow, OlderCoreRow, ProblemRow, Status, WorkloadRow
from nodeseal.mesh.reasons import ProblemWord, WhyNotEnrolled

_BACKENDS = {"ebpf": "eBPF", "iptables": "iptables"}
_EXIT_STATUS = {"ok": 0, "warning": 1, "error": 2}
_MIB = 1 << 20
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
@workload_option
@nodes.looking_options
def command(check: bool, workloads: Sequence[str], run_dir: Path | None, output: str) -> int:
    """Shows this node's workloads: whether each is enrolled, or why not; its identity and how long its certificate is
    valid; and below them what is wrong with the node."""
    selected = Selected.of(workloads)
    if check and workloads:
        raise UsageError("--check is about whole nodes, and --workload about some workloads: give one of them")
    found = nodes.ask_all(nodes.run_directories(run_dir), lambda path: ask(path, STATUS))
    statuses = [
        replace(
            one.says,
            node=one.node,
            run_dir=one.run_dir,
            workloads=[row for row in one.says.workloads if row.workload in selected],
        )
        for one in found.answers
    ]
    if check:
        return _check(statuses, found.errors, output)
    if output == "json":
        print_json(NodeStatuses(nodes=statuses, errors=found.errors))
    elif statuses:
        print("\n\n".join(text(one, some=bool(workloads)) for one in statuses))
    return found.report_errors()


def _check(statuses: Sequence[Status], errors: Sequence[str], form: str) -> int:
    problems = [NodeProblem(node=status.node, **asdict(one)) for status in statuses for one in status.problems]
    problems += [_no_agent(error) for error in errors]
    problems.sort(key=lambda one: one.level)
    level = problems[0].level if problems else "ok"
    if form == "json":
        _tell(lambda: print_json(StatusCheck(level=level, problems=problems)))
    else:
        _tell(lambda: print(check_line(level, problems, statuses)))
    return _EXIT_STATUS[level]


def _tell(tell: Callable[[], None]) -> None:
    """Monitoring that cannot be told must not take it for a warning."""
    try:
        tell()
        sys.stdout.flush()
    except OutputError as error:
        error.status = _EXIT_STATUS["error"]
        raise


def _no_agent(text: str) -> NodeProblem:
    word = ProblemWord.NO_AGENT
    return NodeProblem(word=word.value, level=word.level.value, text=text, remedy=word.remedy)


def check_line(level: str, problems: Sequence[NodeProblem], statuses: Sequence[Status]) -> str:
    """The one line of `--check`: the level, then the worst problems, or what is well."""
    if not problems:
        names = ", ".join(status.node for status in statuses)
        workloads = [one for status in statuses for one in status.workloads]
        count = sum(one.enrolled for one in workloads)
        on_their_way = [(word, sum(one.reason == word for one in workloads)) for word in _ON_THEIR_WAY]
        others = "".join(f", {number} {word}" for word, number in on_their_way if number)
        return f"{level}: {names}: {count} workload{'s' if count != 1 else ''} enrolled{others}"
    shown = [
        f"{one.node}: {one.word}: {one.text}" if one.node else f"{one.word}: {one.text}"
        for one in problems[:_CHECK_SHOWN]
    ]
    more = f"; and {len(problems) - _CHECK_SHOWN} more" if len(problems) > _CHECK_SHOWN else ""
    return f"{level}: {'; '.join(shown)}{more}"


def text(status: Status, *, some: bool = False) -> str:
    """One node's status for a person: what runs, the workloads, and below them what is wrong. `some`: the workloads
    were selected."""
    core, mesh = status.core, status.mesh
    starting = status.agent.starting
    state = f", starting for {duration(starting.seconds)}" if starting else ""
    # A core that runs and has an error was asked for its counters just now, and did not tell them.
    core_state = "does not answer" if core.state == "running" and core.error else core.state
    core_text = f"core {core_state}" + (f" (pid {core.pid})" if core.pid is not None else "")
    listed = [one for one in status.problems if one.word not in _MESH_WORDS]
    parts = [
        # What `capture: auto` had to do without concerns all that follows.
        *(note(_problem(one), "") for one in listed if one.word == ProblemWord.CAPTURE_FALLBACK),
        f"node {status.node}: agent {status.agent.version} (pid {status.agent.pid}{state}), {core_text}",
        note(f"mesh state {mesh.source}, epoch {mesh.epoch}{_backend(status)}", ""),
        "",
    ]
    workloads = status.workloads
    if workloads:
        parts.append(_table(workloads))
    elif not starting:
        parts.append("no such workload is on this node" if some else "no workload of the mesh state is on this node")
    details = [*_absence(status.agent.absence), *_standby(status.agent.standby), *_older_cores(status.older_cores)]
    details += _places(status)
    if status.capture.early:
        details.append(f"captured by iptables, connections are made early: {status.capture.early}")
    details += [*_draining(workloads), *_captured_otherwise(status), *past_core.lines(status)]
    details = [*(_problem(one) for one in listed if one.word != ProblemWord.CAPTURE_FALLBACK), *details]
    if details:
        parts.append("\n".join(note(detail) for detail in details))
    if mesh.error:
        problems = mesh.error.splitlines()
        head = "the mesh state has a problem" if len(problems) == 1 else f"the mesh state has {len(problems)} problems"
        lines = [f"{head} since {mesh.error_since}; {_IN_FORCE[mesh.in_force or 'former']}:"]
        parts.append("\n".join([*lines, *(note(problem) for problem in problems)]))
    return "\n".join(parts)


def _problem(one: ProblemRow) -> str:
    """With its word, by which docs/words.md tells more."""
    return f"{one.word}: {one.text}; {one.remedy}"


def _absence(absence: AbsenceRow | None) -> list[str]:
    """Worth a line only if something was missed."""
    if absence is None or not absence.not_enrolled:
        return []
    names = absence.not_enrolled
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"no agent ran from {absence.begin} to {absence.end}; not enrolled meanwhile: {', '.join(names[:5])}{more}"]


def _older_cores(older: Sequence[OlderCoreRow]) -> list[str]:
    lines = []
    for one in older:
        what = "finishes its connections" if one.retired else "is being replaced"
        left = f": {one.connections} left, for {duration(one.seconds)} so far" if one.connections is not None else ""
        lines.append(f"core of generation {one.generation} (pid {one.pid}) {what}{left}")
    return lines


def _standby(pids: Sequence[int]) -> list[str]:
    return (
        [f"agent{'s' if len(pids) > 1 else ''} that would take over: pid {', '.join(map(str, pids))}"] if pids else []
    )


def _places(status: Status) -> list[str]:
    """The cgroups that cores have of their own."""
    lines = []
    cores: list[CoreRow | OlderCoreRow] = [status.core, *status.older_cores]
    for one in cores:
        if (place := one.place) is None:
            continue
        used = f"{place.memory / _MIB:.0f} MiB" if place.memory is not None else "not counted"
        most = f" of {place.memory_limit / _MIB:.0f} MiB" if place.memory_limit is not None else ""
        cpus = f", at most {place.cpu_limit:g} CPUs" if place.cpu_limit is not None else ""
        which = f"core of generation {one.generation} (pid {one.pid})"
        lines.append(f"{which} is in the cgroup {place.cgroup}: memory {used}{most}{cpus}")
    return lines


def _draining(workloads: Sequence[WorkloadRow]) -> list[str]:
    return [f"{one.workload}: {one.detail}" for one in workloads if one.draining and one.detail]


def _backend(status: Status) -> str:
    """Nothing while the agent starts."""
    backend = status.capture.backend
    return f"; capture by {_BACKENDS[backend]}" if backend else ""


def _captured_otherwise(status: Status) -> list[str]:
    """Whom another backend than that of new workloads captures still."""
    return [
        f"{one.workload}: captured by {_BACKENDS[backend]} until it leaves the mesh"
        for one in status.workloads
        if (backend := one.capture) and backend != status.capture.backend
    ]


def _table(workloads: Sequence[WorkloadRow]) -> str:
    def rows(shorten: bool) -> list[tuple[str, ...]]:
        return [
            (
                one.workload,
                _enrolled(one),
                _identity(one.identity, shorten),
                _remaining(one.certificate),
                str(one.connections),
            )
            for one in workloads
        ]

    return render_first_that_fits(_HEADER, (lambda: rows(False), lambda: rows(True)), right=(3, 4), fold=(0, 1, 2))


def _enrolled(one: WorkloadRow) -> str:
    """ "yes", "yes, strict", or "no: " and the reason. Permissive goes without saying."""
    if not one.enrolled:
        return f"no: {one.reason}"
    return "yes, strict" if one.mode == "strict" else "yes"


def _remaining(certificate: Certificate | None) -> str:
    if certificate is None:
        return "-"
    seconds = certificate.remaining_seconds
    return duration(seconds) if seconds > 0 else "expired"


def _identity(identity: str | None, shorten: bool) -> str:
    if identity is None:
        return "-"
    return short_identity(identity) if shorten else identity
