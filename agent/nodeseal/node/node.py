"""The node: what the agent knows and keeps together, from the mesh state to the core and the workloads.

The mesh that the core decides by is the source's with three changes: this node's workloads have the phases of their
enrolments (a publication of our own says nothing that we do not know better), a workload that is leaving stays in it
until it has left, and its address and identity are those it was captured with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from nodeseal.backoff import Backoff
from nodeseal.capture.listeners import FROM_OUTSIDE
from nodeseal.capture.workload import Captured
from nodeseal.clock import utc_now
from nodeseal.contracts.api import CoreNumber, UpgradedCore
from nodeseal.cores.client import CoreClient, CoreError, CoreWorkload
from nodeseal.cores.distribution import MeshPusher
from nodeseal.cores.hot_restart import Handover
from nodeseal.cores.process import CoreOptions, spawn
from nodeseal.cores.supervisor import CoreSupervisor, StartCore
from nodeseal.enrolment.bypass_keeper import BypassKeeper
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.enrolment.host_watch import HostWatch
from nodeseal.enrolment.installed import Held, Surroundings
from nodeseal.enrolment.workload import Enrolment
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.issuer import Issuer
from nodeseal.linux import addresses
from nodeseal.linux.control_socket import close_all
from nodeseal.local.config import Config
from nodeseal.mesh.model import Mesh, MeshDifference, MeshError, Mode, OnFailure, Phase, Workload, WorkloadName
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.workload import WORKLOADS
from nodeseal.node import probes
from nodeseal.node.absence import Absence
from nodeseal.node.former_publications import FormerPublications
from nodeseal.node.held_back import HeldBack
from nodeseal.node.issuer_watch import IssuerWatch
from nodeseal.node.problems import Part, Problem
from nodeseal.node.publication import OwnPublication
from nodeseal.node.start_steps import Starting
from nodeseal.node.vigil import Vigil
from nodeseal.sources.source import Concern, MeshStateError, Reference, Source, StateProblem

log = logging.getLogger("nodeseal.agent")

_STOP_TIMEOUT_S = 20.0
_PUBLICATION_CHECK_S = 5.0
_NAMESPACE_CHECK_S = 5.0
_VIGIL_S = 5.0


_WHERE_USED = (
    (Concern.PUBLICATION, ProblemWord.PUBLICATION, "see the status of the node whose publication it is"),
    (Concern.UNREAD, ProblemWord.UNREAD_FILE, "move or rename it"),
)


class InForce(StrEnum):
    """What counts while something is wrong with the mesh state."""

    PRESENT = "present"
    """The state as it is now: only a publication is bad."""
    FORMER = "former"
    """The last good state."""
    NONE = "none"
    """Nothing: there never was a good one."""


@dataclass(slots=True)
class MeshTrouble:
    """What is wrong with the mesh state, one line a problem, since when, and what counts meanwhile."""

    text: str
    since: datetime
    in_force: InForce
    found: tuple[StateProblem, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems: one for all that is of a kind, the status has each."""
        if self.in_force is InForce.FORMER:
            remedy = "correct it; the last good state stays in force"
            yield _of_several(ProblemWord.MESH_STATE, self.found, remedy)
        elif self.in_force is InForce.NONE:
            yield _of_several(ProblemWord.NO_MESH_STATE, self.found, "correct it; nothing is enrolled before")
        else:
            for concern, word, remedy in _WHERE_USED:
                if found := [one for one in self.found if one.concern is concern]:
                    yield _of_several(word, found, remedy)


def _of_several(word: ProblemWord, found: Sequence[StateProblem], remedy: str) -> Problem:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Problem(word, f"{found[0].text}{more}", remedy)


class Node:
    """One node's agent, without its sockets and signals. All methods belong to the event loop."""

    def __init__(
        self,
        config: Config,
        issuer: Issuer,
        source: Source,
        capture: CaptureThread,
        *,
        source_at: Callable[[Reference, Path], Source],
        start_core: StartCore = spawn,
        now: Callable[[], datetime] = utc_now,
        last_seen: float | None = None,
        sign_of_life: Callable[[], None] = lambda: None,
    ) -> None:
        """`source_at`: see FormerPublications; `last_seen`: when a former agent of this run directory gave its last
        sign of life (seconds since the epoch); `sign_of_life` gives one of this agent."""
        self.config = config
        self.starting = Starting()
        self.trust_domain = issuer.trust_domain
        self.capture = capture
        self.held_back = HeldBack()
        self.core = CoreSupervisor(
            config.run_dir,
            CoreOptions(
                config.workers,
                issuer.trust_domain,
                spin_us=round(config.spin.total_seconds() * 1_000_000),
                congestion_control=config.congestion_control,
                warm_ms=round(config.warm_tunnels.total_seconds() * 1000),
            ),
            on_start=self.push,
            on_change=self._wake_all,
            start=start_core,
            drain_limit=config.drain_limit.total_seconds() if config.drain_limit is not None else None,
        )
        credentials = Credentials(issuer, now=now)
        settle = config.settle.total_seconds()
        self.around = Surroundings(self, self.core, capture, credentials, settle, config.limits, now)
        self.enrolments: dict[WorkloadName, Enrolment] = {}
        self.publication = OwnPublication(source, lambda: credentials.trust, self._to_publish)
        self.former = FormerPublications(config.run_dir, source, source_at)
        self.hosts = HostWatch(self.enrolments, capture)
        self.handover = Handover(self.core, self.enrolments)
        self.issuer = issuer
        self.issuer_watch = IssuerWatch(issuer, config.run_dir)
        self.pusher = MeshPusher(self.core, self._effective)
        self.bypass = BypassKeeper(capture, config.node, config.node_addresses)
        self.vigil = Vigil(config.node, source.describe(), config.run_dir, self.core, self.around.settle)
        self.trouble: MeshTrouble | None = None
        self.source = source
        self._from_source: Mesh | None = None
        self._ours: dict[WorkloadName, Workload] = {}
        """This node's workloads in the source's mesh."""
        self._next_key = 1
        self.absence = Absence(last_seen, time.time()) if last_seen is not None else None
        self._sign_of_life = sign_of_life
        self._adopted: set[WorkloadName] = set()
        self._drivers: dict[WorkloadName, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def mesh(self) -> Mesh | None:
        """What the core decides by."""
        return self.pusher.mesh

    @property
    def epoch(self) -> int:
        """By which the core knows it."""
        return self.pusher.epoch

    # ---- beginning and end

    async def begin(self) -> None:
        """Finds or starts the core, prepares capture, adopts what is there. Raises CoreError, CaptureError,
        PublicationError, OSError, with nothing left behind that was not there before."""
        step = self.starting.step
        with step("finding or starting a core"):
            await self.core.begin()
        try:
            with step("preparing capture (the BPF programs are compiled if they were not before)"):
                await self.capture.prepare()
            if self.config.node_addresses.local:
                # Before the map is brought up to date: what a former agent left in it has them.
                self.bypass.local = await asyncio.to_thread(addresses.node_addresses)
            self.former.remember_present()
            with step("taking over what a former agent left"):
                await self._adopt()
            # A publication of a former run may name what is not captured any more.
            with step("publishing"):
                await self.publish()
        except BaseException:
            if self.core.started_here:
                await self.core.stop_core()
                if not self.enrolments:
                    # Nothing was here before: nothing is to be left.
                    await self.capture.forget(self.config.run_dir)
            raise
        with step("telling the core the mesh state"):
            await self.push()
        self.core.set_ready()
        self._tasks.append(asyncio.create_task(self.core.run(), name="core"))
        self._tasks.append(asyncio.create_task(self.handover.begin(), name="upgrade"))
        self._tasks.append(asyncio.create_task(self._follow(), name="mesh"))
        if self.config.node_addresses.local:
            self._tasks.append(asyncio.create_task(self._follow_addresses(), name="addresses"))
        self._tasks.append(asyncio.create_task(self._keep_publication(), name="publication"))
        self._tasks.append(asyncio.create_task(self._watch_namespaces(), name="namespaces"))
        self._tasks.append(asyncio.create_task(self.hosts.run(), name="host"))
        self._tasks.append(asyncio.create_task(self.issuer_watch.run(), name="issuer"))
        self._tasks.append(asyncio.create_task(self._follow_trust(), name="trust"))
        self._tasks.append(asyncio.create_task(self._keep_vigil(), name="vigil"))
        if self._from_source is not None:
            # Without any mesh state nobody knows what is wanted: what is captured waits for one.
            for name in self.enrolments:
                self._start_driver(name)
        self.starting.done()

    async def end(self) -> None:
        """Lets the steps in hand come to their end; core, capture and publication stay as they are."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._sign_of_life()
        self.pusher.stop()
        self.handover.stop()
        self.bypass.stop()
        for enrolment in self.enrolments.values():
            enrolment.stop()
        drivers = list(self._drivers.values())
        if drivers:
            await asyncio.wait(drivers, timeout=_STOP_TIMEOUT_S)
        for task in (*drivers, *self._tasks):
            task.cancel()
        await asyncio.gather(*drivers, *self._tasks, return_exceptions=True)
        self.close()

    def close(self) -> None:
        """Lets go of capture and core, which go on."""
        self.capture.close()
        self.core.close()

    async def _adopt(self) -> None:
        """Takes over what a former agent left in capture and cores; what only one of them has is brought in line."""
        current = self.core.current
        assert current is not None
        hello = current.hello
        hellos = [hello, *(link.hello for link in self.core.older)]
        self._next_key = max((workload.key for one in hellos for workload in one.workloads), default=0) + 1
        # A core that has just been started knows nothing, an older one may. (Its protocol may be another.)
        readable = next((link for link in self.core.links()[::-1] if link.hello.epoch), None)
        if hello.epoch:
            readable = current
        known = await readable.call(CoreClient.mesh_read) if readable is not None else None
        # The last good state, until the source has one: also while what it has is bad.
        self.pusher.adopt(known if readable is current else None, hello.epoch, max(one.epoch for one in hellos))
        if known is not None:
            self.pusher.mesh = known
        if known is None:
            # The former core is lost too. What this node published tells what was enrolled: fail closed from the start.
            with contextlib.suppress(MeshStateError):
                loaded = await self.source.load()
                known = loaded if self._foreign_trust_domain(loaded) is None else None
        self._use(known)
        in_core = {workload.name: workload for workload in hello.workloads}
        for captured in await self.capture.adopt():
            name = WorkloadName.parse(captured.target.name)
            await self._adopt_one(name, captured, in_core.pop(name, None), known)
            self._adopted.add(name)
        for leftover in in_core.values():
            log.warning("the core's workload %s is not captured: removed", leftover.name)
            await self.core.call(CoreClient.workload_remove, leftover.key)

    async def _adopt_one(
        self, name: WorkloadName, captured: Captured, in_core: CoreWorkload | None, known: Mesh | None
    ) -> None:
        workload = known.workloads.get(name) if known is not None else None
        if workload is None or workload.addresses != captured.target.addresses:
            account = in_core.identity.service_account if in_core is not None else "default"
            target = captured.target
            workload = Workload(name, account, self.config.node, target.addresses, target.netns, True, Mode.PERMISSIVE)
        # What is in force: so that what the mesh state says otherwise by now is seen.
        on_failure = OnFailure.OPEN if captured.target.open_on_failure else OnFailure.CLOSED
        workload = replace(workload, host=captured.target.host, on_failure=on_failure)
        identity = in_core.identity if in_core is not None else workload.identity(self.trust_domain)
        held = Held(workload, 0, identity, captured, 0)
        given: dict[int, int] = {}
        if in_core is not None and in_core.addresses != captured.target.addresses:
            await self.core.call(CoreClient.workload_remove, in_core.key)
        elif in_core is not None:
            held.key, held.incarnation = in_core.key, self.core.incarnation
            given = await self.core.call(CoreClient.listeners, in_core.key)
            held.roles = set(given)
            if captured.phase == "leaving":
                # The former agent may have ended before it said so.
                await self.core.call(CoreClient.workload_unlisten, in_core.key, *FROM_OUTSIDE)
                held.roles -= set(FROM_OUTSIDE)
        for role, fd in (await self._listeners_of_older(name)).items():
            # The very sockets that an older core still accepts from: what waits in them is not lost.
            if role in given:
                os.close(fd)
            else:
                given[role] = fd
        try:
            await self.capture.take_listeners(captured, given)
        finally:
            close_all(given.values())
        wanted = known.workloads.get(name) if known is not None else None
        if wanted is not None and wanted.node != self.config.node:
            wanted = None
        enrolment = Enrolment(name, self.around, replace(wanted, phase=Phase.ABSENT) if wanted else None, held)
        phase = workload.phase
        if captured.phase == "leaving":
            phase = Phase.LEAVING
        elif phase is Phase.ABSENT:
            phase = Phase.JOINING
        enrolment.adopt_phase(phase)
        self.enrolments[name] = enrolment
        if workload.host is not None:
            self.hosts.wake()
        log.info("adopted workload %s, %s, key %d", name, phase.value, held.key)

    async def _listeners_of_older(self, name: WorkloadName) -> dict[int, int]:
        for link in self.core.older[::-1]:
            for workload in link.hello.workloads:
                if workload.name == name and workload.roles and not link.retired:
                    with contextlib.suppress(CoreError):
                        return await link.call(CoreClient.listeners, workload.key)
        return {}

    async def upgrade_core(self) -> UpgradedCore:
        """See Handover.upgrade. Raises CoreError, UpgradeError."""
        before, core = await self.handover.upgrade()
        return UpgradedCore(
            node=self.config.node,
            pid=core.pid,
            generation=core.generation,
            version=core.version,
            before=CoreNumber(pid=before.pid, generation=before.generation, version=before.version),
            workloads=sum(enrolment.held is not None for enrolment in self.enrolments.values()),
        )

    def moved_on(self) -> None:
        """See Handover.moved_on."""
        self.handover.moved_on()

    def waits_for_neighbours(self, name: WorkloadName) -> bool:
        """See NodeServices and Handover.waits_for_neighbours."""
        return self.handover.waits_for_neighbours(name)

    # ---- the mesh state

    async def _follow(self) -> None:
        backoff = Backoff(1.0, 60.0)
        while True:
            try:
                await self._follow_source()
            except Exception as error:
                # The last good state stays in force, as for a bad edit.
                self._note_trouble(f"it cannot be followed: {' '.join(str(error).split()) or repr(error)}")
            await asyncio.sleep(backoff.next())

    async def _follow_source(self) -> None:
        async for item in self.source.changes():
            if isinstance(item, Mesh):
                problem = self._foreign_trust_domain(item)
                if problem is None:
                    self.trouble = None
                    await self._take(item)
                else:
                    self._note_trouble(problem)
            else:
                self._note_trouble(str(item), item)
                # What cannot be read may be this node's own publication.
                await self.publication.heal()

    def _foreign_trust_domain(self, mesh: Mesh) -> str | None:
        if mesh.trust_domain == self.trust_domain:
            return None
        return f"trust_domain: expected {self.trust_domain}, as in {self.issuer.describe()}, found {mesh.trust_domain}"

    def _note_trouble(self, text: str, error: MeshStateError | None = None) -> None:
        """`error`: the source's, if it is one."""
        used = error is not None and error.used
        in_force = InForce.PRESENT if used else InForce.FORMER if self._from_source is not None else InForce.NONE
        found = error.problems if error is not None else (StateProblem(text),)
        self.trouble = MeshTrouble(text, utc_now(), in_force, found)
        lines = text.splitlines()
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        effect = {
            InForce.PRESENT: "is used, but something is wrong in it",
            InForce.FORMER: "is not used, the last good one stays in force",
            InForce.NONE: "cannot be used, and there never was a good one: nothing is enrolled",
        }[in_force]
        log.warning("mesh state %s %s: %s%s", self.source.describe(), effect, lines[0] if lines else "", more)

    async def _take(self, mesh: Mesh) -> None:
        """A new state: every workload of this node gets to know what it is to be."""
        if self.absence is not None:
            self.absence.note(mesh, self.config.node, self._adopted)
        self._use(mesh)
        ours = self._ours
        for name in ours.keys() - self.enrolments.keys():
            self.enrolments[name] = Enrolment(name, self.around)
        for name, enrolment in list(self.enrolments.items()):
            workload = ours.get(name)
            if workload is not None:
                self.vigil.leftovers.forget(name)
            elif enrolment.held is not None:
                self.vigil.leftovers.note(name, enrolment.held.captured)
            # The publication's phase is our own word and changes nothing.
            enrolment.update(replace(workload, phase=Phase.ABSENT) if workload is not None else None)
        await self.push()
        read = {name for name, workload in ours.items() if workload.accepts_tunnels}
        await self.publication.compare(read, ours.keys())
        for name in list(self.enrolments):
            self._start_driver(name)

    def _use(self, mesh: Mesh | None) -> None:
        self._from_source = mesh
        workloads = mesh.workloads.values() if mesh is not None else ()
        self._ours = {workload.key: workload for workload in workloads if workload.node == self.config.node}
        if any(workload.host is not None for workload in self._ours.values()):
            self.hosts.wake()

    async def _keep_publication(self) -> None:
        """Looks after the publication itself: an edit right after another one may not alter what the source sees."""
        while True:
            with contextlib.suppress(OSError):
                self._sign_of_life()
            await asyncio.sleep(_PUBLICATION_CHECK_S)
            await self.publication.heal()
            await self.former.withdraw()

    async def _keep_vigil(self) -> None:
        while True:
            await asyncio.sleep(_VIGIL_S)
            self._tell_vigil()
            try:
                await self.vigil.look(self.capture.has_cgroup)
            except Exception as error:
                # Whatever it is: nobody would miss a watch that has ended.
                log.warning("cannot look at what is lost: %s", " ".join(str(error).split()) or repr(error))

    def _tell_vigil(self) -> None:
        # Without a core nothing can be enrolled, which the status says of the core.
        pending = [name for name, one in self.enrolments.items() if one.pending and self.core.ready]
        self.vigil.take(self._from_source, self.source.publishers, self.around.credentials.trust, pending)

    async def _watch_namespaces(self) -> None:
        """Wakes the enrolments whose network namespace is gone: a look at each costs far less than waking all."""
        while True:
            await asyncio.sleep(_NAMESPACE_CHECK_S)
            for enrolment in self.enrolments.values():
                enrolment.wake_if_gone()

    async def _follow_trust(self) -> None:
        """Wakes the enrolments when the trust anchors have changed: each gives them to the core."""
        async for _bundle in self.issuer.changes():
            self._wake_all()

    async def _follow_addresses(self) -> None:
        async for found in addresses.follow():
            log.info("addresses of the node: %s", ", ".join(map(str, addresses.in_order(found))))
            await self.bypass.set_local(found)

    def _start_driver(self, name: WorkloadName) -> None:
        if name in self._drivers or self._stopping:
            return
        enrolment = self.enrolments[name]
        task = asyncio.create_task(enrolment.drive(), name=f"enrolment {name}")
        self._drivers[name] = task

        def done(_task: asyncio.Task[None]) -> None:
            self._drivers.pop(name, None)
            if self._stopping:
                return
            if enrolment.finished and self.enrolments.get(name) is enrolment:
                del self.enrolments[name]
            else:
                # It came back into the mesh state in the moment that its driver ended.
                self._start_driver(name)

        task.add_done_callback(done)

    def _wake_all(self) -> None:
        self.moved_on()
        for enrolment in self.enrolments.values():
            enrolment.wake()

    def _to_publish(self) -> frozenset[WorkloadName]:
        return frozenset(name for name, enrolment in self.enrolments.items() if enrolment.published)

    def _effective(self) -> Mesh | None:
        source = self._from_source
        if source is None:
            return None
        ours = dict.fromkeys(self._ours, Phase.ABSENT)
        kept = []
        for name, enrolment in self.enrolments.items():
            wanted = source.workloads.get(name)
            if wanted is not None and wanted.node != self.config.node:
                # It has moved. Its new node's publication tells its phase, and its new address is where it is to be
                # found; what is left of it here drains without being in the model.
                continue
            ours[name] = enrolment.phase
            if enrolment.held is not None:
                held = enrolment.held.workload
                # For an agent that adopts: one that is kept only because it is leaving is not wanted.
                asked = wanted is not None and wanted.wanted
                now = wanted if wanted is not None else held
                kept.append(replace(held, phase=enrolment.phase, mode=now.mode, exclude=now.exclude, wanted=asked))
        mesh = source.with_phases(ours)
        changed = [workload for workload in kept if mesh.workloads.get(workload.key) != workload]
        for workload in changed:
            # One at a time: an address that the mesh state gives to another by now belongs to that other.
            with contextlib.suppress(MeshError):
                mesh = mesh.apply(MeshDifference(mesh.trust_domain, {WORKLOADS.name: (workload,)}))
        return mesh

    async def push(self) -> None:
        """Sends the present mesh to the core. Never raises, see MeshPusher."""
        await self.pusher.push()
        await self.bypass.take(self.pusher.mesh)
        self.moved_on()

    # ---- what the enrolments ask for

    async def publish(self) -> None:
        """See OwnPublication.publish. Raises PublicationError."""
        await self.publication.publish()

    def parts(self) -> Iterator[Part]:
        """Whoever may know of something wrong; see nodeseal.node.problems."""
        self._tell_vigil()
        yield self.publication
        yield self.former
        yield self
        yield self.issuer_watch
        yield self.vigil
        yield from (enrolment for _name, enrolment in sorted(self.enrolments.items()))

    def problems(self) -> Iterator[Problem]:
        """What is wrong with this node as a whole; see nodeseal.node.problems."""
        if self.trouble is not None:
            yield from self.trouble.problems()
        by_rules = (
            one.wanted_state
            for one in self.enrolments.values()
            if one.wanted_state is not None
            and (one.held.captured.backend if one.held is not None else self.capture.backend) == "iptables"
        )
        if refused := probes.refused(by_rules, self.config.node_addresses, self.bypass.local):
            yield probes.problem(refused)

    def new_key(self) -> int:
        """A key that no core has had from this agent."""
        key = self._next_key
        self._next_key += 1
        return key
