"""What the local API answers: the node's state as JSON-able dicts. The keys are a contract with users' scripts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from nodeseal import __version__
from nodeseal.contracts.core import Connection, CoreStats, WorkloadStats
from nodeseal.contracts.refusal import Refusal, merged
from nodeseal.cores.client import CoreClient, CoreError
from nodeseal.cores.link import CoreLink
from nodeseal.enrolment.workload import Enrolment
from nodeseal.identity.credentials import utc_now
from nodeseal.linux.sock_diag import Direct, DirectError
from nodeseal.mesh import decide
from nodeseal.mesh.address import AddressError, OriginalDestination, SourceAddress, parse_address
from nodeseal.mesh.exclusions import Excluded, Exclusions
from nodeseal.mesh.model import Mesh, Phase
from nodeseal.mesh.reasons import ProblemWord, WhyNotEnrolled, WhyPlaintext
from nodeseal.node import problems
from nodeseal.node.absence import Absence
from nodeseal.node.node import Node
from nodeseal.node.problems import Problem

_CORE_PATIENCE_S = 3.0
_SUMMED = ("connections", "tunnels", "refused", "failed", "tls_failed", "memory")


async def status(node: Node) -> dict[str, Any]:
    """{"ok", "node", "run_dir", "trust_domain", "agent": {"pid", "version", "absence", "starting"}, "core": {"pid",
    "state", "error", "generation", "version", "outdated", "crashes", "decisions", "descriptors", "handshakes"},
    "older_cores": [{"pid", "generation", "version", "retired", "connections", "tunnels", "seconds"}], "mesh":
    {"source", "epoch", "error", "error_since", "in_force"}, "capture": {"backend", "why", "held": {"packets",
    "last_seconds"}, "tracked"}, "workloads": [...], "problems": [{"word", "level", "about", "text", "remedy"}]}; see
    _workload for a workload's keys, _absence for that of the agent, nodeseal.node.problems for what is wrong.

    While the agent starts, "starting" is {"doing", "since", "seconds"}, and the rest as of a node on which nothing is.
    """
    if node.starting.doing is not None:
        return _starting(node, node.starting.doing)
    counts: dict[str, dict[str, int]] = {}
    limits: dict[str, dict[str, Any]] = {}
    core = node.core.describe()
    if node.core.pid is not None:
        try:
            async with asyncio.timeout(_CORE_PATIENCE_S):
                answers = await node.core.call_all(CoreClient.stats)
            rows = [row for _link, (_stats, rows) in answers for row in rows]
            counts, limits = _sums(rows), limits_of(rows, utc_now())
            core["decisions"] = _decisions(answers[0][1][0])
            core["descriptors"] = _descriptors(answers[0][1][0])
            core["handshakes"] = _handshakes(answers[0][1][0])
        except (CoreError, TimeoutError) as error:
            core["error"] = str(error) or "it does not answer"
    workloads = [_workload(node, enrolment, counts, limits) for _name, enrolment in sorted(node.enrolments.items())]
    counted = await node.capture.errors()
    trouble = node.trouble
    answer = {
        "ok": True,
        "node": node.config.node,
        "run_dir": str(node.config.run_dir),
        "trust_domain": node.trust_domain,
        "agent": {**_agent(), "absence": _absence(node.absence), "starting": None},
        "core": core,
        "older_cores": await asyncio.gather(*(_older_core(link) for link in node.core.older)),
        "mesh": {
            "source": str(node.source.describe()),
            "epoch": node.epoch,
            "error": trouble.text if trouble is not None else None,
            "error_since": trouble.since.isoformat(timespec="seconds") if trouble is not None else None,
            "in_force": trouble.in_force.value if trouble is not None else None,
        },
        "capture": {
            "backend": node.capture.backend,
            "why": node.capture.why or None,
            "held": node.held_back.shown(counted["egress_held"]),
            "tracked": node.capture.tracked or None,
        },
        "node_addresses": node.bypass.shown(),
        "past_core": _past_core_counts(counted),
        "workloads": workloads,
    }
    return {**answer, "problems": problems.collect(answer, node.parts())}


def _agent() -> dict[str, Any]:
    return {"pid": os.getpid(), "version": __version__}


def _starting(node: Node, doing: str) -> dict[str, Any]:
    starting = node.starting
    since, seconds = starting.since.isoformat(timespec="seconds"), round(starting.seconds, 1)
    text = f"the agent is starting: {doing}, for {seconds:.0f} s so far"
    remedy = "ask again; what takes long is in its log"
    return {
        "ok": True,
        "node": node.config.node,
        "run_dir": str(node.config.run_dir),
        "trust_domain": node.trust_domain,
        "agent": {
            **_agent(),
            "absence": _absence(node.absence),
            "starting": {"doing": doing, "since": since, "seconds": seconds},
        },
        "core": node.core.describe(),
        "older_cores": [],
        "mesh": {
            "source": str(node.source.describe()),
            "epoch": 0,
            "error": None,
            "error_since": None,
            "in_force": None,
        },
        "capture": {"backend": None, "why": None, "held": node.held_back.shown(0), "tracked": None},
        "node_addresses": [],
        "past_core": {},
        "workloads": [],
        "problems": [Problem(ProblemWord.AGENT_STARTING, text, remedy).as_json()],
    }


def _past_core_counts(counts: dict[str, int]) -> dict[str, int]:
    """How many connections passed by the core since capture began on this node, by why."""
    return {
        WhyPlaintext.FROM_NODE.value: counts["steer_from_node"],
        "excluded-inbound": counts["steer_excluded"],
        "excluded-outbound": counts["connect_excluded"],
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


def limits_of(rows: Iterable[WorkloadStats], now: datetime) -> dict[str, dict[str, Any]]:
    """Workload -> what it may have and what was refused for it: {"connections": {"limit", "refused", "since",
    "last_seconds"}, ...}; "limit" is null where there is none. Of several cores the first row tells the limits: each
    core has them for itself."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        limits = found.setdefault(str(row.workload), {})
        for name, limited in row.limited.items():
            limit = getattr(row.limits, name, None) or None
            one = limits.setdefault(name, {"limit": limit, "refused": 0, "since": None, "last_seconds": None})
            if not limited.refused:
                continue
            one["refused"] += limited.refused
            since = (now - timedelta(milliseconds=limited.first_ms)).isoformat(timespec="seconds")
            one["since"] = min(one["since"] or since, since)
            last = limited.last_ms / 1000
            one["last_seconds"] = last if one["last_seconds"] is None else min(one["last_seconds"], last)
    return found


def _handshakes(stats: CoreStats) -> dict[str, int]:
    """Of peers that have not proven who they are: how many there are, how many had to go for others, and how many steps
    waited because of what their source had cost."""
    return {"unproven": stats.strangers, "ended": stats.strangers_ended, "slowed": stats.strangers_slowed}


def _descriptors(stats: CoreStats) -> dict[str, int]:
    """Open in the core's process, about, and how many there may be."""
    return {"open": stats.descriptors, "limit": stats.descriptor_limit}


def _absence(absence: Absence | None) -> dict[str, Any] | None:
    """When no agent ran before this one, and what was not enrolled for it; null when there was none before."""
    if absence is None:
        return None
    begin, end = (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (absence.begin, absence.end))
    missed = [str(name) for name in absence.missed or ()]
    return {"from": begin, "to": end, "seconds": round(absence.end - absence.begin, 1), "not_enrolled": missed}


async def _older_core(link: CoreLink) -> dict[str, Any]:
    """A core that was replaced and has connections left; null for what it does not tell."""
    connections, tunnels = None, None
    with contextlib.suppress(CoreError, TimeoutError):
        async with asyncio.timeout(_CORE_PATIENCE_S):
            connections, tunnels = await link.call(CoreClient.live)
    return {
        "pid": link.pid,
        "generation": link.generation,
        "version": link.version,
        "retired": link.retired,
        "connections": connections,
        "tunnels": tunnels,
        "seconds": round(asyncio.get_running_loop().time() - link.since, 1),
    }


def _decisions(stats: CoreStats) -> dict[str, float]:
    """How many were made and taken from the cache since the core's start, and what one took, in microseconds."""
    return {
        "asked": stats.questions,
        "cached": stats.cache_hits,
        "p50_us": stats.decision_p50_ns / 1000,
        "p99_us": stats.decision_p99_ns / 1000,
    }


def _workload(
    node: Node, enrolment: Enrolment, counts: dict[str, dict[str, int]], limits: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    held = enrolment.held
    source = enrolment.wanted_state or (held.workload if held is not None else None)
    reason, detail = enrolment.why()
    count = counts.get(str(enrolment.name), {}) if held is not None else {}
    if reason is WhyNotEnrolled.PENDING and node.core.error:
        detail = node.core.error
    # Where it is captured, whatever the mesh state says by now.
    known = held.workload if held is not None else source
    addresses = [str(address) for address in known.addresses] if known is not None else []
    return {
        "workload": str(enrolment.name),
        "address": addresses[0] if addresses else "",
        "addresses": addresses,
        "netns": source.netns if source is not None else None,
        "cgroup": source.host.cgroup if source is not None and source.host is not None else None,
        "wanted": enrolment.wanted_state is not None and enrolment.wanted_state.wanted,
        "enrolled": enrolment.phase is Phase.ENROLLED,
        "phase": enrolment.phase.value,
        "draining": held is not None and held.draining,
        "reason": reason.value if reason is not None else None,
        "detail": detail,
        "retry_seconds": _retry_seconds(enrolment),
        "capture": held.captured.backend if held is not None else None,
        "mode": source.mode.value if source is not None else None,
        "exclude": _exclude(node.bypass.excluded(enrolment.name)),
        "on_failure": known.on_failure.value if known is not None else None,
        # Only what is enrolled has one.
        "identity": str(held.identity) if held is not None else None,
        "certificate": _certificate(enrolment),
        "connections": count.get("connections", 0),
        "tunnels": count.get("tunnels", 0),
        "refused": count.get("refused", 0),
        "failed": count.get("failed", 0),
        "failed_handshakes": count.get("tls_failed", 0),
        "memory": count.get("memory", 0),
        "limits": limits.get(str(enrolment.name), {}) if held is not None else {},
    }


def _exclude(exclude: Exclusions) -> dict[str, Any] | None:
    """As in the mesh state; None for nothing."""
    if not exclude:
        return None

    def direction(excluded: Excluded, networks: str) -> dict[str, list[str]]:
        return {"ports": [str(ports) for ports in excluded.ports], networks: [str(one) for one in excluded.networks]}

    return {"inbound": direction(exclude.inbound, "from"), "outbound": direction(exclude.outbound, "to")}


def _retry_seconds(enrolment: Enrolment) -> float | None:
    """Until the next try after a failure."""
    if enrolment.trouble is None:
        return None
    return round(max(0.0, enrolment.trouble.retry_at - asyncio.get_running_loop().time()), 1)


def _certificate(enrolment: Enrolment) -> dict[str, Any] | None:
    held = enrolment.held
    if held is None or held.credential is None:
        return None
    svid = held.credential.svid
    remaining = (svid.not_after - enrolment.around.now()).total_seconds()
    return {
        "not_after": svid.not_after.isoformat(timespec="seconds"),
        "remaining_seconds": round(remaining, 1),
        "renews_at": held.credential.renew_at.isoformat(timespec="seconds"),
        "serial": svid.serial,
    }


async def connections(node: Node) -> dict[str, Any]:
    """{"ok", "node", "trust_domain", "connections": [...], "refused": [...], "errors": [...]}: what the core carries,
    what goes past it in captured namespaces, and the peers that were refused in the last day.

    Raises CoreError when the core does not answer.
    """
    async with asyncio.timeout(_CORE_PATIENCE_S * 2):
        answers = await node.core.call_all(CoreClient.observe)
    found = [_through_core(node.mesh, row, link.generation) for link, (rows, _refused) in answers for row in rows]
    refused = merged(refusal for _link, (_rows, refusals) in answers for refusal in refusals)
    errors = []
    for name, enrolment in sorted(node.enrolments.items()):
        # While it drains, what is new goes past the core as well, and nothing tells which is which.
        if enrolment.held is None or enrolment.held.draining:
            continue
        try:
            directs = await node.capture.direct(enrolment.held.captured)
        except (DirectError, OSError) as error:
            errors.append(f"{name}: connections past the core cannot be listed: {error}")
            continue
        found += [_past_core(node, enrolment, direct) for direct in directs]
    return {
        "ok": True,
        "node": node.config.node,
        "trust_domain": node.trust_domain,
        "connections": found,
        "refused": [refused_row(node.mesh, refusal, utc_now()) for refusal in refused],
        "errors": errors,
    }


def _through_core(mesh: Mesh | None, row: Connection, generation: int) -> dict[str, Any]:
    closed = row.state == "closed"
    # At an address that processes of a node share, the port of one that dials tells nothing.
    own = row.workload if row.direction == "outbound" else None
    return {
        "id": row.id,
        "core": generation,
        "workload": row.workload,
        "direction": row.direction,
        "source": row.source,
        "source_workload": _name_of(mesh, row.source) or own,
        "destination": row.destination,
        "destination_workload": _name_of(mesh, row.destination),
        "endpoint": row.endpoint,
        "endpoint_workload": _name_of(mesh, row.endpoint),
        "state": row.state,
        "mtls": row.mtls,
        "peer": row.peer or None,
        "tls": row.tls or None,
        "reason": row.reason or None,
        "bytes_sent": row.bytes_sent,
        "bytes_received": row.bytes_received,
        "age_seconds": row.age_ms / 1000,
        "closed_seconds": row.closed_ms / 1000 if closed else None,
    }


def refused_row(mesh: Mesh | None, refusal: Refusal, now: datetime) -> dict[str, Any]:
    """A row of "refused"; the times are of the first and the last refusal that it stands for."""
    host = f"[{refusal.source}]" if ":" in refusal.source else refusal.source
    own = refusal.workload if refusal.direction == "outbound" else None
    return {
        "workload": refusal.workload,
        "direction": refusal.direction,
        "kind": refusal.kind,
        "status": refusal.status or None,
        "source": refusal.source,
        "source_workload": own or _name_of(mesh, f"{host}:0"),
        "destination": refusal.destination,
        "destination_workload": _name_of(mesh, refusal.destination),
        "peer": refusal.peer or None,
        "reason": refusal.reason,
        "count": refusal.count,
        "first": (now - timedelta(milliseconds=refusal.first_ms)).isoformat(timespec="seconds"),
        "last": (now - timedelta(milliseconds=refusal.last_ms)).isoformat(timespec="seconds"),
        "first_seconds": refusal.first_ms / 1000,
        "last_seconds": refusal.last_ms / 1000,
    }


def _past_core(node: Node, enrolment: Enrolment, direct: Direct) -> dict[str, Any]:
    mesh = node.mesh
    local, remote = (str(SourceAddress(*end)) for end in (direct.local, direct.remote))
    source, destination = (remote, local) if direct.inbound else (local, remote)
    # Counted for the dialling application, as the core does.
    dialled = (direct.bytes_sent, direct.bytes_received)
    sent, received = dialled[::-1] if direct.inbound else dialled
    return {
        "id": None,
        "core": None,
        "workload": str(enrolment.name),
        "direction": "inbound" if direct.inbound else "outbound",
        "source": source,
        "source_workload": _name_of(mesh, source),
        "destination": destination,
        "destination_workload": _name_of(mesh, destination),
        "endpoint": destination,
        "endpoint_workload": _name_of(mesh, destination),
        "state": "open",
        "mtls": False,
        "peer": None,
        "tls": None,
        "reason": _why_past_core(node, enrolment, direct).value,
        "bytes_sent": sent,
        "bytes_received": received,
        "age_seconds": None,
        "closed_seconds": None,
    }


def _why_past_core(node: Node, enrolment: Enrolment, direct: Direct) -> WhyPlaintext:
    """What lets it pass by the core now. (Nothing on a socket tells what did when it was opened.)"""
    mesh = node.mesh
    here = mesh.workloads.get(enrolment.name) if mesh is not None else None
    (remote, remote_port), local_port = direct.remote, direct.local[1]
    why = None
    if mesh is not None and here is not None:
        if direct.inbound:
            why = decide.excluded_inbound(mesh, here, remote, local_port)
        else:
            why = decide.excluded_outbound(mesh, here, OriginalDestination(remote, remote_port))
    if why is not None:
        return why
    if direct.mark != 0:
        return WhyPlaintext.APPLICATION_MARK
    if direct.inbound and node.bypass.is_node(remote):
        return WhyPlaintext.FROM_NODE
    return WhyPlaintext.OPENED_BEFORE_ENROLMENT


def _name_of(mesh: Mesh | None, endpoint: str) -> str | None:
    """ "ns/name" of the workload or service at "address:port", or None."""
    if mesh is None or not endpoint:
        return None
    host, _, port = endpoint.rpartition(":")
    try:
        address = parse_address(host.strip("[]"))
    except AddressError:
        return None
    known = mesh.by_address.get(address) or mesh.service_by_address.get(address) or mesh.host_at(address, int(port))
    return str(known.key) if known is not None else None
