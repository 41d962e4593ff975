"""The node's state as the local API tells it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec.structs import replace

from nodeseal import __version__
from nodeseal.clock import utc_now
from nodeseal.contracts.core import CoreStats, WorkloadStats
from nodeseal.contracts.status import (
    AbsenceRow,
    AgentRow,
    CaptureRow,
    Certificate,
    CoreRow,
    Decisions,
    Descriptors,
    Exclude,
    ExcludedInbound,
    ExcludedOutbound,
    Handshakes,
    Limit,
    MeshRow,
    OlderCoreRow,
    Starting,
    Status,
    WorkloadRow,
)
from nodeseal.cores import place
from nodeseal.cores.client import CoreClient, CoreError
from nodeseal.cores.link import CoreLink
from nodeseal.enrolment.installed import Installed
from nodeseal.enrolment.workload import Enrolment
from nodeseal.local import run_directory
from nodeseal.mesh.exclusions import Exclusions
from nodeseal.mesh.model import Connect, Phase
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord, WhyNotEnrolled, WhyPlaintext
from nodeseal.node import problems
from nodeseal.node.absence import Absence
from nodeseal.node.node import Node

_CORE_PATIENCE_S = 3.0
_SUMMED = ("connections", "tunnels", "refused", "failed", "tls_failed", "memory")


async def status(node: Node) -> Status:
    """What there is, what it does, and what is wrong. While the agent starts: that, and the rest as of a node on which
    nothing is."""
    if node.starting.doing is not None:
        return _starting(node, node.starting.doing)
    counts: dict[str, dict[str, int]] = {}
    limits: dict[str, dict[str, Limit]] = {}
    core = node.core.describe()
    if core.pid is not None:
        try:
            async with asyncio.timeout(_CORE_PATIENCE_S):
                answers = await node.core.call_all(CoreClient.stats)
            rows = [row for _link, (_stats, rows) in answers for row in rows]
            counts, limits = _sums(rows), limits_of(rows, utc_now())
            core = _with_stats(core, answers[0][1][0])
        except (CoreError, TimeoutError) as error:
            core = replace(core, error=str(error) or "it does not answer")
    if core.generation is not None:
        core = replace(core, place=await asyncio.to_thread(place.described, node.config.run_dir, core.generation))
    natives = await node.natives.rows()
    await node.plain_clients.look()
    clients = node.plain_clients.rows(node.mesh)
    workloads = [
        replace(
            _workload(node, enrolment, counts, limits),
            native=natives.get(str(name)),
            plain_clients=clients.get(str(name), []),
        )
        for name, enrolment in sorted(node.enrolments.items())
    ]
    counted = await node.capture.errors()
    answer = Status(
        node=node.config.node,
        run_dir=str(node.config.run_dir),
        trust_domain=node.trust_domain,
        agent=_agent(node),
        core=core,
        older_cores=await asyncio.gather(*(_older_core(node.config.run_dir, link) for link in node.core.older)),
        mesh=_mesh(node),
        capture=CaptureRow(
            backend=node.capture.backend,
            why=node.capture.why or None,
            early=node.capture.early or None,
            held=node.held_back.shown(counted["egress_held"]),
            tracked=node.capture.tracked or None,
        ),
        node_addresses=node.bypass.shown(),
        past_core=_past_core_counts(counted),
        workloads=workloads,
    )
    return replace(answer, problems=problems.collect(answer, node.parts()))


def _starting(node: Node, doing: str) -> Status:
    seconds = round(node.starting.seconds, 1)
    since = node.starting.since.isoformat(timespec="seconds")
    text = f"the agent is starting: {doing}, for {seconds:.0f} s so far"
    problem = Problem(ProblemWord.AGENT_STARTING, text, "ask again; what takes long is in its log")
    return Status(
        node=node.config.node,
        run_dir=str(node.config.run_dir),
        trust_domain=node.trust_domain,
        agent=replace(_agent(node), starting=Starting(doing=doing, since=since, seconds=seconds)),
        core=node.core.describe(),
        mesh=MeshRow(source=str(node.source.describe())),
        capture=CaptureRow(held=node.held_back.shown(0)),
        problems=[problems.row_of(problem)],
    )


def _agent(node: Node) -> AgentRow:
    return AgentRow(
        pid=os.getpid(),
        version=__version__,
        absence=_absence(node.absence),
        unready=node.unready(),
        standby=run_directory.standbys(node.config.run_dir),
    )


def _absence(absence: Absence | None) -> AbsenceRow | None:
    """When no agent ran before this one, and what was not enrolled for it; None when there was none before."""
    if absence is None:
        return None
    begin, end = (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (absence.begin, absence.end))
    missed = [str(name) for name in absence.missed or ()]
    return AbsenceRow(begin=begin, end=end, seconds=round(absence.end - absence.begin, 1), not_enrolled=missed)


def _with_stats(core: CoreRow, stats: CoreStats) -> CoreRow:
    """Decisions are counted since the core's start."""
    return replace(
        core,
        decisions=Decisions(
            asked=stats.questions,
            cached=stats.cache_hits,
            p50_us=stats.decision_p50_ns / 1000,
            p99_us=stats.decision_p99_ns / 1000,
        ),
        descriptors=Descriptors(open=stats.descriptors, limit=stats.descriptor_limit),
        handshakes=Handshakes(unproven=stats.strangers, ended=stats.strangers_ended, slowed=stats.strangers_slowed),
    )


async def _older_core(run_dir: Path, link: CoreLink) -> OlderCoreRow:
    """A core that was replaced and has connections left; None for what it does not tell."""
    connections, tunnels = None, None
    with contextlib.suppress(CoreError, TimeoutError):
        async with asyncio.timeout(_CORE_PATIENCE_S):
            connections, tunnels = await link.call(CoreClient.live)
    return OlderCoreRow(
        pid=link.pid,
        generation=link.generation,
        version=link.version,
        retired=link.retired,
        connections=connections,
        tunnels=tunnels,
        seconds=round(asyncio.get_running_loop().time() - link.since, 1),
        place=await asyncio.to_thread(place.described, run_dir, link.generation),
    )


def _mesh(node: Node) -> MeshRow:
    mesh, failure = MeshRow(source=str(node.source.describe()), epoch=node.epoch), node.mesh_state.failure
    if failure is None:
        return mesh
    since = failure.since.isoformat(timespec="seconds")
    return replace(mesh, error=str(failure.error), error_since=since, in_force=failure.in_force.value)


def _past_core_counts(counts: dict[str, int]) -> dict[str, int]:
    """How many connections passed by the core since capture began on this node, by why."""
    return {
        WhyPlaintext.FROM_NODE.value: counts["steer_from_node"],
        "excluded-inbound": counts["steer_excluded"],
        "excluded-outbound": counts["connect_excluded"],
        WhyPlaintext.OUTSIDE_MESH.value: counts["connect_outside"],
        WhyPlaintext.APPLICATION_MARK.value: counts["connect_foreign_mark"],
    }


def _sums(rows: Iterable[WorkloadStats]) -> dict[str, dict[str, int]]:
    """Workload -> its counters, those of all cores together."""
    sums: dict[str, dict[str, int]] = {}
    for row in rows:
        counters = sums.setdefault(str(row.workload), {})
        for name in _SUMMED:
            counters[name] = counters.get(name, 0) + getattr(row, name)
    return sums


def limits_of(rows: Iterable[WorkloadStats], now: datetime) -> dict[str, dict[str, Limit]]:
    """Workload -> what it may have and what was refused for it, by limit. Of several cores the first row tells the
    limits: each core has them for itself."""
    found: dict[str, dict[str, Limit]] = {}
    for row in rows:
        limits = found.setdefault(str(row.workload), {})
        for name, limited in row.limited.items():
            one = limits.setdefault(name, Limit(limit=getattr(row.limits, name, None) or None))
            if not limited.refused:
                continue
            since = (now - timedelta(milliseconds=limited.first_ms)).isoformat(timespec="seconds")
            last = limited.last_ms / 1000
            limits[name] = replace(
                one,
                refused=one.refused + limited.refused,
                since=min(one.since or since, since),
                last_seconds=last if one.last_seconds is None else min(one.last_seconds, last),
            )
    return found


def _workload(
    node: Node, enrolment: Enrolment, counts: dict[str, dict[str, int]], limits: dict[str, dict[str, Limit]]
) -> WorkloadRow:
    installed = enrolment.installed
    source = enrolment.wanted_state or (installed.workload if installed is not None else None)
    reason, detail = enrolment.why()
    count = counts.get(str(enrolment.name), {}) if installed is not None else {}
    if reason is WhyNotEnrolled.PENDING and node.core.error:
        detail = node.core.error
    # Where it is captured, whatever the mesh state says by now.
    known = installed.workload if installed is not None else source
    addresses = [str(address) for address in known.addresses] if known is not None else []
    return WorkloadRow(
        workload=str(enrolment.name),
        address=addresses[0] if addresses else "",
        addresses=addresses,
        netns=source.netns if source is not None else None,
        cgroup=source.host.cgroup if source is not None and source.host is not None else None,
        wanted=enrolment.wanted_state is not None and enrolment.wanted_state.wanted,
        enrolled=enrolment.phase is Phase.ENROLLED,
        phase=enrolment.phase.value,
        draining=installed is not None and installed.draining,
        reason=reason.value if reason is not None else None,
        detail=detail,
        retry_seconds=_retry_seconds(enrolment),
        capture=installed.captured.backend if installed is not None else None,
        mode=source.mode.value if source is not None else None,
        exclude=_exclude(node.bypass.excluded(enrolment.name)),
        on_failure=known.on_failure.value if known is not None else None,
        connect=_connect(installed),
        # Only what is enrolled has one.
        identity=str(installed.identity) if installed is not None else None,
        certificate=_certificate(enrolment),
        connections=count.get("connections", 0),
        tunnels=count.get("tunnels", 0),
        refused=count.get("refused", 0),
        failed=count.get("failed", 0),
        failed_handshakes=count.get("tls_failed", 0),
        memory=count.get("memory", 0),
        limits=limits.get(str(enrolment.name), {}) if installed is not None else {},
    )


def _connect(installed: Installed | None) -> str | None:
    """What is in force, which need not be what is asked for."""
    if installed is None:
        return None
    return (Connect.TRUTHFUL if installed.captured.parking else Connect.EARLY).value


def _exclude(exclude: Exclusions) -> Exclude | None:
    """As in the mesh state; None for nothing."""
    if not exclude:
        return None
    ports = [[str(ports) for ports in excluded.ports] for excluded in (exclude.inbound, exclude.outbound)]
    networks = [[str(one) for one in excluded.networks] for excluded in (exclude.inbound, exclude.outbound)]
    return Exclude(
        inbound=ExcludedInbound(ports=ports[0], sources=networks[0]),
        outbound=ExcludedOutbound(ports=ports[1], destinations=networks[1]),
    )


def _retry_seconds(enrolment: Enrolment) -> float | None:
    """Until the next try after a failure."""
    if enrolment.failure is None:
        return None
    return round(max(0.0, enrolment.failure.retry_at - asyncio.get_running_loop().time()), 1)


def _certificate(enrolment: Enrolment) -> Certificate | None:
    installed = enrolment.installed
    if installed is None or installed.credential is None:
        return None
    svid = installed.credential.svid
    remaining = (svid.not_after - enrolment.context.now()).total_seconds()
    return Certificate(
        not_after=svid.not_after.isoformat(timespec="seconds"),
        remaining_seconds=round(remaining, 1),
        renews_at=installed.credential.renew_at.isoformat(timespec="seconds"),
        serial=svid.serial,
    )
