"""The node: the parts of an agent put together, from the mesh state to the core and the workloads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nodeseal.clock import utc_now
from nodeseal.cores.distribution import MeshPusher
from nodeseal.cores.hot_restart import HotRestart
from nodeseal.cores.process import CoreOptions, spawn
from nodeseal.cores.revocation_pusher import RevocationPusher
from nodeseal.cores.supervisor import CoreSupervisor, StartCore
from nodeseal.cores.trust_pusher import TrustPusher
from nodeseal.enrolment.adoption import Adoption
from nodeseal.enrolment.bypass_keeper import BypassKeeper
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.enrolment.context import Context
from nodeseal.enrolment.enrolments import Enrolments
from nodeseal.enrolment.host_watch import HostWatch
from nodeseal.enrolment.workload import Enrolment
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.issuer import Issuer
from nodeseal.linux import addresses
from nodeseal.local.config import Config
from nodeseal.local.pod_start import Wait
from nodeseal.local.tls_profile import TlsProfile
from nodeseal.mesh.model import Mesh, Phase, PlaintextWay, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.node import probes
from nodeseal.node.absence import Absence
from nodeseal.node.arrivals import Arrivals
from nodeseal.node.federation import Federation
from nodeseal.node.former_publications import FormerPublications
from nodeseal.node.held_back import HeldBack
from nodeseal.node.issuer_watch import IssuerWatch
from nodeseal.node.lasting import lasting
from nodeseal.node.mesh_state import MeshState
from nodeseal.node.native_log import NativeLog
from nodeseal.node.natives import NativeConnections
from nodeseal.node.plain_clients import PlainClients
from nodeseal.node.problems import Part
from nodeseal.node.publication import OwnPublication
from nodeseal.node.readiness import Readiness
from nodeseal.node.revocations import Revocations
from nodeseal.node.start_steps import Starting
from nodeseal.node.trust_watch import TrustWatch
from nodeseal.node.vigil import Vigil
from nodeseal.sources.source import Reference, Source, SourceAwayError

log = logging.getLogger("nodeseal.agent")

_PUBLICATION_CHECK_S = 5.0
_ANCHORS_LOOK_S = 5.0
_NAMESPACE_CHECK_S = 5.0


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
            CoreOptions.of(config, issuer.trust_domain),
            on_start=self._introduce,
            on_change=self._wake_all,
            start=start_core,
            drain_limit=config.drain_limit.total_seconds() if config.drain_limit is not None else None,
        )
        credentials = Credentials(
            issuer,
            now=now,
            anchors=lambda: self.mesh_state.anchors,
            why_not=lambda identity: self.revocations.why_not_issued(identity),
            revoked=lambda svid: self.revocations.names(svid),
            fips=config.tls is TlsProfile.FIPS,
        )
        settle = config.settle.total_seconds()
        self.federation = Federation(config.run_dir, lambda: credentials.bundle.pem, lambda: self.issuer.others, now)
        pusher = TrustPusher(self.core, lambda: credentials.bundle, lambda: self.federation.bundles)
        self.context = Context(self, self.core, capture, credentials, pusher, settle, config.limits, config.connect)
        self.context.native = config.plaintext is PlaintextWay.NATIVE
        self.context.now = now
        self.enrolments = Enrolments()
        self._revoker = RevocationPusher(self.core)
        self.revocations = Revocations(config.node, config.crls, self._revoker, self.enrolments, now)
        self.trust = TrustWatch(self.core, pusher, credentials, self.enrolments, now)
        self.publication = OwnPublication(source, self.trust.published, self.enrolments.published)
        self.former = FormerPublications(config.run_dir, source, source_at)
        self.hosts = HostWatch(self.enrolments, capture)
        self.hot_restart = HotRestart(self.core, self.enrolments)
        self.issuer = issuer
        self.issuer_watch = IssuerWatch(issuer, config.run_dir)
        self.pusher = MeshPusher(self.core, lambda: self.mesh_state.effective(self.enrolments.values()))
        self.bypass = BypassKeeper(capture, config.node, config.node_addresses, config.extent)
        self.natives = NativeConnections(capture, self.enrolments, lambda: self.mesh)
        self.native_log = NativeLog(capture)
        self.plain_clients = PlainClients(capture)
        self.vigil = Vigil(config.node, source.describe(), config.run_dir, self.core, self.context.settle)
        self.source = source
        self.mesh_state = MeshState(source, config.node, issuer.trust_domain, issuer.describe())
        settled = config.pod_start is not None and config.pod_start.wait is Wait.SETTLED
        self.arrivals = Arrivals(source, self.enrolments, lambda: self.starting.doing, settled=settled)
        self.further_parts: list[Part] = []
        """Of the agent beside this one, which may know of something wrong."""
        self._next_key = 1
        self.absence = Absence(last_seen, time.time()) if last_seen is not None else None
        self._sign_of_life = sign_of_life
        self._readiness = Readiness()
        self._adopted: frozenset[WorkloadName] = frozenset()
        self._read: set[WorkloadName] = set()
        """What the mesh state says that this node has published."""
        self._doubts = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

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
        """Finds or starts the core, prepares capture, adopts what is there. Raises IssuerError, CoreError,
        CaptureError, PublicationError, OSError, with nothing left behind that was not there before."""
        step = self.starting.step
        with step(f"asking {self.issuer.describe()} for trust anchors"):
            await self.issuer.begin()
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
            await self.trust.push()
            await self.trust.look()
            # A publication of a former run may name what is not captured any more.
            with step("publishing"), contextlib.suppress(SourceAwayError):
                # What a former agent has published stays meanwhile, and it is tried again.
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
        self._go_on("core", self.core.run)
        self._go_on("upgrade", self.hot_restart.begin)
        self._go_on("mesh", lambda: self.mesh_state.follow(self._take, self.publication.heal))
        if self.config.node_addresses.local:
            self._go_on("addresses", self.bypass.follow_local)
        self._go_on("publication", self._keep_publication)
        self._go_on("healing", self._heal_publication)
        self._go_on("namespaces", self._watch_namespaces)
        self._go_on("host", self.hosts.run)
        self._go_on("issuer", self.issuer_watch.run)
        self._go_on("plain clients", self.plain_clients.run)
        self._go_on("trust", self._follow_trust)
        self._go_on("anchors", self._follow_anchors)
        self._go_on("revocations", self.revocations.run)
        self._go_on("federation", lambda: self.federation.run(self._push_trust))
        self._go_on("vigil", lambda: self.vigil.run(self._tell_vigil, self.capture.has_cgroup))
        if self.mesh_state.present is not None:
            # Without any mesh state nobody knows what is wanted: what is captured waits for one.
            self.enrolments.drive()
        self.starting.done()

    def _go_on(self, name: str, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.append(asyncio.create_task(lasting(name, what), name=name))

    async def end(self) -> None:
        """Lets the steps in hand come to their end; core, capture and publication stay as they are."""
        with contextlib.suppress(OSError):
            self._sign_of_life()
        self.pusher.stop()
        self.context.trust.stop()
        self._revoker.stop()
        self.hot_restart.stop()
        self.bypass.stop()
        self.natives.stop()
        await self.enrolments.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.close()

    def close(self) -> None:
        """Lets go of capture and core, which go on."""
        self.capture.close()
        self.core.close()

    async def _adopt(self) -> None:
        """Takes over what a former agent left."""
        assert self.core.current is not None
        adoption = Adoption(self.config.node, self.context, self.core.current)
        self._next_key = adoption.first_key
        # Without any core that knows, what this node published tells what was enrolled: fail closed from the start.
        known = await adoption.mesh(self.pusher)
        if known is None:
            known = await self.mesh_state.load()
        self._use(known)
        if known is not None:
            await self.federation.take(known)
        async for enrolment in adoption.enrolments(known):
            self.enrolments.add(enrolment)
        self._adopted = frozenset(self.enrolments)
        self._readiness.adopted = frozenset(one.name for one in self.enrolments.values() if one.published)
        if any(one.shares_port for one in self.enrolments.values()):
            self.hosts.wake()

    def unready(self) -> str | None:
        """Why the node does not have yet what a rollout may rely on, one line; None: it has. See Readiness."""
        if self.starting.doing is not None:
            return f"it is starting: {self.starting.doing}"
        return self._readiness.why_not(self.enrolments.values(), core=self.hot_restart.unready)

    def moved_on(self) -> None:
        """See HotRestart.moved_on."""
        self.hot_restart.moved_on()

    def waits_for_neighbours(self, name: WorkloadName) -> bool:
        """See NodeServices and HotRestart.waits_for_neighbours."""
        return self.hot_restart.waits_for_neighbours(name)

    # ---- the mesh state

    async def _take(self, mesh: Mesh) -> None:
        """A new state: every workload of this node gets to know what it is to be."""
        if self.absence is not None:
            self.absence.note(mesh, self.config.node, self._adopted)
        self._use(mesh)
        await self.federation.take(mesh)
        await self.revocations.take(mesh)
        ours = self.mesh_state.ours
        for name in ours.keys() - self.enrolments.keys():
            self.enrolments.add(Enrolment(name, self.context))
        for name, enrolment in self.enrolments.items():
            workload = ours.get(name)
            if workload is not None:
                self.vigil.leftovers.forget(name)
            elif enrolment.installed is not None:
                self.vigil.leftovers.note(name, enrolment.installed.captured)
            # The publication's phase is our own word and changes nothing.
            enrolment.update(replace(workload, phase=Phase.ABSENT) if workload is not None else None)
        await self.push()
        await self._push_trust()
        self._read = {name for name, workload in ours.items() if workload.accepts_tunnels}
        self._doubts.set()
        self.enrolments.drive()
        self.arrivals.take(mesh)
        self._readiness.synced()

    def _use(self, mesh: Mesh | None) -> None:
        self.mesh_state.use(mesh)
        if any(workload.host is not None for workload in self.mesh_state.ours.values()):
            self.hosts.wake()

    async def _keep_publication(self) -> None:
        """Looks after the publication itself: an edit right after another one may not alter what the source sees."""
        while True:
            with contextlib.suppress(OSError):
                self._sign_of_life()
            await asyncio.sleep(_PUBLICATION_CHECK_S)
            await self.trust.push()
            await self.revocations.push()
            await self.publication.heal()
            await self.former.withdraw()

    async def _heal_publication(self) -> None:
        """Looks at the publication when something may be wrong with it. In a task of its own: where a source is slow to
        write, the next state is taken all the same."""
        while True:
            await self._doubts.wait()
            self._doubts.clear()
            await self.publication.heal()
            await self.publication.compare(self._read, self.mesh_state.ours.keys())

    def _tell_vigil(self) -> None:
        # Without a core nothing can be enrolled, which the status says of the core.
        pending = [name for name, one in self.enrolments.items() if one.pending and self.core.ready]
        self.vigil.take(self.mesh_state.present, self.source.publishers, self.trust.published(), pending)

    async def _watch_namespaces(self) -> None:
        while True:
            await asyncio.sleep(_NAMESPACE_CHECK_S)
            self.enrolments.wake_if_gone()

    async def _follow_trust(self) -> None:
        """The cores get what the issuer has changed in the trust anchors, and other nodes are told. Whoever has a
        certificate looks whether there is another one by now."""
        async for _bundle in self.issuer.changes():
            await self.federation.look()
            await self._push_trust()
            self.enrolments.retry_certificates()

    async def _follow_anchors(self) -> None:
        """Other nodes are told which anchors the connections of this one need."""
        while True:
            await asyncio.sleep(_ANCHORS_LOOK_S)
            if await self.trust.look():
                await self.publication.heal()

    async def _push_trust(self) -> None:
        """Whoever has a certificate of an anchor that is gone gets another one."""
        if await self.trust.push():
            self._wake_all()
        # A change of the issuer's own root is told even where the core has both.
        self._doubts.set()

    def _wake_all(self) -> None:
        self.moved_on()
        self.enrolments.wake()

    async def _introduce(self) -> None:
        """A core that has started gets what all workloads have in common."""
        await self.push()
        await self.trust.push()
        await self.revocations.push()

    async def push(self) -> None:
        """Sends the present mesh to the core. Never raises, see MeshPusher."""
        await self.pusher.push()
        await self.bypass.take(self.pusher.mesh)
        self.natives.look_again()
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
        yield self.mesh_state
        yield self
        yield self.trust
        yield self.federation
        yield self.revocations
        yield self.issuer_watch
        yield self.vigil
        yield from self.further_parts
        yield from (enrolment for _name, enrolment in sorted(self.enrolments.items()))

    def problems(self) -> Iterator[Problem]:
        """What is wrong with this node as a whole; see nodeseal.node.problems."""
        by_rules = (
            one.wanted_state
            for one in self.enrolments.values()
            if one.wanted_state is not None
            and (one.installed.captured.backend if one.installed is not None else self.capture.backend) == "iptables"
        )
        if refused := probes.refused(by_rules, self.config.node_addresses, self.bypass.local):
            yield probes.problem(refused)

    def new_key(self) -> int:
        """A key that no core has had from this agent."""
        key = self._next_key
        self._next_key += 1
        return key
