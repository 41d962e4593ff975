"""A run: round by round, each peer in turn (A B C A B C), so that what the machine does meanwhile falls on all of
them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.accounting import read_memory, read_usage
from bench.bed import CLIENT, SERVER, Bed, new_bed
from bench.build import Programs
from bench.errors import BenchError
from bench.generator import measure, running
from bench.loads import LOADS, Load
from bench.peers.nodeseal import Nodeseal
from bench.peers.peer import IDLE_CONNECTIONS, Peer, Started
from bench.wire import REQUEST, RESPONSE_SIZE, check_wire
from nodeseal_lab.errors import LabError

WORKLOADS_AT_REST = 10


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how often. Times in seconds."""

    rounds: int
    warmup: float
    seconds: float
    idle_connections: int
    quick: bool

    @classmethod
    def full(cls, rounds: int) -> Settings:
        return cls(rounds, warmup=0.7, seconds=2.0, idle_connections=IDLE_CONNECTIONS, quick=False)

    @classmethod
    def short(cls, rounds: int) -> Settings:
        return cls(rounds, warmup=0.2, seconds=0.7, idle_connections=1000, quick=True)


@dataclass
class Session:
    """`visits` and `failures` fill while it runs. `say`: shows a line of progress."""

    programs: Programs
    peers: Sequence[Peer]
    settings: Settings
    say: Callable[[str], None]
    visits: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    congestion_control: str | None = None
    rest: dict[str, Any] | None = None

    def run(self) -> None:
        """Visits every peer in every round. What fails is noted, and the run goes on."""
        for number in range(1, self.settings.rounds + 1):
            for peer in self.peers:
                began = time.monotonic()
                where = f"round {number}/{self.settings.rounds} {peer.name}"
                try:
                    visit = self._visit(peer, number)
                except (BenchError, LabError) as error:
                    self.failures.append(f"{where}: {error}")
                    self.say(f"{where}: FAILED: {error}")
                    continue
                self.visits.append(visit)
                self.say(f"{where}: {time.monotonic() - began:.0f} s{_complaints(visit, self.settings)}")
        ours = next((peer for peer in self.peers if isinstance(peer, Nodeseal)), None)
        if ours is not None and not self.settings.quick:
            self._measure_rest(ours)

    def _visit(self, peer: Peer, number: int) -> dict[str, Any]:
        visit: dict[str, Any] = {"peer": peer.name, "round": number, "proxied": peer.threads > 0}
        with new_bed(self.programs) as bed:
            self._note_congestion_control(bed)
            started = start_peer(bed, peer)
            visit["memory"] = {
                "idle_mb": read_memory(started.pids).pss_mb,
                "idle_private_mb": read_memory(started.pids).private_mb,
                "helpers_mb": read_memory(started.helpers).pss_mb,
            }
            server = server_pid(bed)
            visit["loads"] = {load.name: self._measure(bed, peer, started, load, server) for load in LOADS}
        if peer.threads > 0:
            with new_bed(self.programs) as bed:
                visit["holding"] = self._hold(bed, peer)
        return visit

    def _measure(self, bed: Bed, peer: Peer, started: Started, load: Load, server: int) -> dict[str, Any]:
        warmup, seconds = self.settings.warmup, self.settings.seconds
        try:
            measured = measure(bed, started, load, server=server, warmup=warmup, seconds=seconds)
        except BenchError as error:
            raise BenchError(f"{error}{_ended(started)}") from error
        if not (measured.requests or measured.connections or measured.gigabytes):
            raise BenchError(f"load {load.name}: nothing came through{_ended(started)}")
        return measured.to_json()

    def _hold(self, bed: Bed, peer: Peer) -> dict[str, Any]:
        """Memory and CPU for connections on which nothing happens, in a bed that has seen nothing else."""
        started = start_peer(bed, peer)
        wanted = peer.idle_connections(self.settings.idle_connections)
        before = read_memory(started.pids)
        with running(bed, started, Load("idle", idle=wanted), warmup=self.settings.warmup, seconds=1.0) as generator:
            usage = read_usage(started.pids)
            generator.say()
            generator.expect("done", 30.0)
            spent = read_usage(started.pids) - usage
            after = read_memory(started.pids)
            result = generator.read_result()
        if result["idle"] != wanted:
            raise BenchError(
                f"of {wanted} idle connections {wanted - result['idle']} were lost: {result['last_error']}"
            )
        sides = len(started.proxies)
        return {
            "connections": wanted,
            "pss_mb": after.pss_mb,
            "kb_per_connection": (after.pss_mb - before.pss_mb) * 1000 / wanted / sides,
            "cpu_ms_per_s": spent.total_s * 1000 / result["seconds"],
        }

    def _measure_rest(self, peer: Nodeseal) -> None:
        """nodeseal with WORKLOADS_AT_REST workloads on each node and no traffic: mean of the two nodes."""
        try:
            with new_bed(self.programs, pods_per_node=WORKLOADS_AT_REST) as bed:
                started = start_peer(bed, peer)
                before = read_usage([*started.pids, *started.helpers])
                time.sleep(self.settings.seconds)  # what is measured is that nothing happens
                spent = read_usage([*started.pids, *started.helpers]) - before
                cores, agents = read_memory(started.pids), read_memory(started.helpers)
        except (BenchError, LabError) as error:
            self.failures.append(f"{peer.name} at rest: {error}")
            self.say(self.failures[-1])
            return
        sides = len(started.proxies)
        self.rest = {
            "workloads_per_node": WORKLOADS_AT_REST,
            "core_pss_mb": cores.pss_mb / sides,
            "core_private_mb": cores.private_mb / sides,
            "core_rss_mb": cores.rss_mb / sides,
            "agent_pss_mb": agents.pss_mb / sides,
            "agent_private_mb": agents.private_mb / sides,
            "cpu_ms_per_s": spent.total_s * 1000 / self.settings.seconds / sides,
        }

    def _note_congestion_control(self, bed: Bed) -> None:
        found = {bed.setting(pod, "ipv4/tcp_congestion_control") for pod in (CLIENT, SERVER)}
        expected = self.congestion_control or sorted(found)[0]
        if found != {expected}:
            raise BenchError(f"the pods use {', '.join(sorted(found))} as congestion control, the others {expected}")
        self.congestion_control = expected

    def settings_json(self) -> dict[str, Any]:
        """For bench.json."""
        return asdict(self.settings)


def start_peer(bed: Bed, peer: Peer) -> Started:
    """Starts the peer, and waits until requests pass through it, encrypted if it encrypts. Raises BenchError."""
    bed.wait_ready(bed.app, REQUEST, RESPONSE_SIZE, ())
    started = peer.start(bed)
    bed.wait_ready(started.target, REQUEST, RESPONSE_SIZE, started.watched)
    check_wire(bed, peer, started)
    return started


def server_pid(bed: Bed) -> int:
    """The application of the server pod."""
    return next(record.pid for record in bed.lab.processes.records() if record.role == f"serve {SERVER}" and record.pid)


def _ended(started: Started) -> str:
    ended = [record.role for record in started.watched if not record.alive]
    return f"; ended: {', '.join(ended)}" if ended else ""


def _complaints(visit: dict[str, Any], settings: Settings) -> str:
    """What a reader of the figures should know of a visit, as the end of its line of progress."""
    notes = []
    for name, load in visit["loads"].items():
        if load["errors"]:
            notes.append(f"{name}: {load['errors']} connections failed")
        if load.get("unfinished"):
            notes.append(f"{name}: {load['unfinished']} requests unanswered")
    others = sum(load["other_cpu_s"] for load in visit["loads"].values())
    share = others / (settings.seconds * len(visit["loads"]))
    if share > 0.25:
        notes.append(f"the machine was busy with something else ({share:.2f} CPUs)")
    return "".join(f"; {note}" for note in notes)
