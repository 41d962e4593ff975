"""One workload's way into the mesh and out of it.

Theory of operation. Each workload of the node has an Enrolment whose driver does one step at a time and then waits for
a change or a time. What must hold at every point:

* A captured connection finds a core that can treat it: the core has the workload and its credentials before capture
  begins, and gets the listeners right after (SYNs wait in their backlogs meanwhile).
* A peer tunnels only to what is captured: the publication comes after, and goes first when the workload leaves.
* Peers learn late: JOINING and LEAVING last `settle`, see nodeseal.mesh.decide.
* Connections outlive the enrolment: after LEAVING nothing new is captured, the rest stays until the core has no
  connection of the workload any more ("draining").
* A failure concerns one workload: it is undone, shown with its reason, and tried again later and later.

    ABSENT --install--> JOINING --settle--> ENROLLED --withdraw--> LEAVING --settle--> draining --empty--> ABSENT
                           ^------------- wanted again ----------------'------------------'

A workload whose primary address or namespace changes in the mesh state, or whose namespace is gone, leaves without
draining: its connections are of another place. Further addresses come and go, and so does a changed service account,
which gets new credentials, in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass

from nodeseal.backoff import Backoff
from nodeseal.capture.listeners import FROM_OUTSIDE, SHARED
from nodeseal.cores.client import CoreClient, CoreError
from nodeseal.enrolment.capture_thread import inode_of, is_at
from nodeseal.enrolment.certificate import LONGEST_SLEEP_S
from nodeseal.enrolment.failure import Failure, reason_of, text_of
from nodeseal.enrolment.installed import Installed
from nodeseal.enrolment.ring import settle_ring
from nodeseal.enrolment.state import EnrolmentState
from nodeseal.linux.control_socket import close_all
from nodeseal.mesh.limits import Limits
from nodeseal.mesh.model import Phase, Workload

log = logging.getLogger("nodeseal.agent")

LOOK_AGAIN_S = 30.0
"""At what an enrolled workload's namespace has: some milliseconds each time."""
_DRAIN_POLL_S = 1.0


@dataclass(eq=False)
class Enrolment(EnrolmentState):
    """One workload's; `drive` moves it on."""

    _stopping: bool = False
    _phase_since: float = 0.0
    _published_at: float | None = None
    _looked_at: float = 0.0

    def update(self, workload: Workload | None) -> None:
        """What the mesh state says of it now; None: nothing any more."""
        if workload != self.wanted_state:
            self.wanted_state = workload
            self.wake()

    def adopt_phase(self, phase: Phase) -> None:
        """The phase that a former agent brought it to; its time begins anew."""
        self._enter(phase)

    def wake_if_gone(self) -> None:
        """Wakes the driver when the captured namespace is not there any more."""
        if self.installed is not None and not self._in_place(self.installed):
            self.wake()

    def arrive(self) -> None:
        """Its pod's network has just been made, perhaps where it was before: what failed is tried again at once."""
        self.departing = None
        self.wake()

    def depart(self, netns: str) -> None:
        """The network namespace is about to go: without draining, for nothing runs there any more."""
        self.departing = netns
        self.wake()

    def is_joined(self, netns: str) -> bool:
        """Whether it is captured in this very network namespace, and published."""
        return self.is_captured_at(netns) and self.published and self._published_at is not None

    def is_captured_at(self, netns: str) -> bool:
        """Whether it is captured in this very network namespace."""
        installed = self.installed
        return installed is not None and not installed.removing and is_at(installed.captured, netns)

    def place_at(self, inode: int) -> str | None:
        """As what it has, or is to have, the network namespace of this number; None: it is another one."""
        wanted = self.wanted_state.netns if self.wanted_state is not None else None
        if self.installed is not None and self.installed.captured.namespace.inode == inode:
            return self.installed.captured.target.netns
        return wanted if wanted is not None and inode_of(wanted) == inode else None

    def stop(self) -> None:
        """The driver ends after the step in hand; everything stays in place."""
        self._stopping = True
        self._changed.set()

    async def drive(self) -> None:
        """Runs until stop(), or until nothing is left to do for a workload that the mesh state no longer has."""
        backoff = Backoff(1.0, 60.0, self.context.rand)
        loop = asyncio.get_running_loop()
        while not self._stopping and not self.finished:
            self._changed.clear()
            try:
                delay = await self._step()
                if not self._waits_for_certificate:
                    self.failure = None
                    backoff.reset()
            except Exception as error:
                # Whatever it is concerns this workload only.
                delay = backoff.next()
                self.failure = Failure(reason_of(error), text_of(error), loop.time() + delay)
                log.warning("workload %s: %s; next try in %.0f s", self.name, self.failure.detail, delay)
            self.stepped()
            if not self.finished:
                await self._wait(delay)
        self.certificate.request.cancel()

    async def _wait(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _step(self) -> float | None:
        """One move; then the seconds to wait before the next, None for as long as nothing changes."""
        installed = self.installed
        if installed is None:
            if not self._may_enrol():
                self.certificate.request.cancel()
                return None
            return 0 if await self._install() else None
        if installed.removing:
            await self._remove(installed)
            return 0
        if installed.captured.target.netns == self.departing:
            await self._abandon(installed, "its network is being removed")
            return 0
        if not self._in_place(installed):
            await self._abandon(installed, "its network namespace is gone, or another one by now")
            return 0
        if not self.context.core.ready:
            return None  # woken when it is
        if installed.incarnation != self.context.core.incarnation and not await self._hand_over(installed):
            return None
        if installed.limits != self._limits():
            installed.limits = await self._give_limits(installed.key)
        await settle_ring(self.context, installed, self.wanted_state)
        if installed.draining:
            return await self._drain(installed)
        await self._give_listeners(installed)
        if self.phase is Phase.LEAVING:
            return await self._leave(installed)
        if not self._should_stay(installed):
            await self._withdraw()
            return 0
        return await self._stay(installed)

    @property
    def _waits_for_certificate(self) -> bool:
        """Nothing can be done before the issuer has answered."""
        installed = self.installed
        return self.certificate.request.waiting and (
            installed is None or installed.incarnation != self.context.core.incarnation
        )

    def _may_enrol(self) -> bool:
        wanted = self.wanted_state
        if wanted is None or not wanted.wanted or wanted.netns is None or wanted.netns == self.departing:
            return False
        return self.context.core.ready

    def _should_stay(self, installed: Installed) -> bool:
        wanted = self.wanted_state
        return wanted is not None and wanted.wanted and not self._moved(installed)

    def _moved(self, installed: Installed) -> bool:
        wanted, had = self.wanted_state, installed.workload
        if wanted is None:
            return False
        if (wanted.host is None) != (had.host is None):
            return True
        if wanted.host is not None:
            return wanted.addresses != had.addresses
        return not installed.captured.takes(wanted.addresses)

    def _in_place(self, installed: Installed) -> bool:
        """The namespace that the mesh state names (or named last) is the one that is captured."""
        wanted = self.wanted_state
        named = wanted.netns if wanted is not None else None
        return is_at(installed.captured, named or installed.captured.target.netns)

    async def _install(self) -> bool:
        """False: it waits for its certificate, and is woken when that is there."""
        workload = self.wanted_state
        assert workload is not None
        assert workload.netns is not None
        context = self.context
        identity = workload.identity(context.node.trust_domain)
        credential = self.certificate.request.take(identity)
        if credential is None:
            return False
        key = context.node.new_key()
        incarnation = context.core.incarnation
        with await context.capture.open_namespace(workload.netns) as namespace:
            await context.core.call(
                CoreClient.workload_add, key, self.name, identity, workload.addresses, netns_fd=namespace.fd
            )
        captured = None
        try:
            limits = await self._give_limits(key)
            bundle = await self.certificate.give(key, identity, credential)
            captured = await context.capture.enrol(workload)
            installed = Installed(
                workload, key, identity, captured, incarnation, limits=limits, credential=credential, bundle=bundle
            )
            await self._give_listeners(installed)
            await settle_ring(context, installed, workload)
        except BaseException:
            with contextlib.suppress(CoreError):
                await context.core.call(CoreClient.workload_remove, key)
            if captured is not None:
                await context.capture.stop_new(captured)
                await context.capture.release(captured)
            raise
        self.installed = installed
        log.info("workload %s is captured as %s", self.name, identity)
        for _, warning, _ in self.astray(installed):
            log.warning("workload %s: %s", self.name, warning)
        await self._join()
        return True

    async def _join(self) -> None:
        self._enter(Phase.JOINING)
        self._published_at = None
        await self.context.node.push()
        await self._publish()

    async def _publish(self) -> None:
        await self.context.node.publish()
        if self._published_at is None:
            self._published_at = asyncio.get_running_loop().time()

    async def _hand_over(self, installed: Installed) -> bool:
        """False: it waits for a certificate, and is woken when that is there."""
        context = self.context
        incarnation = context.core.incarnation
        credential = installed.credential
        if self.wanted_state is not None and not installed.draining:
            identity = self.wanted_state.identity(context.node.trust_domain)
            if identity != installed.identity:
                installed.identity, credential = identity, None
        # One that is due for renewal will do: the issuer may be slow, and the workload waits for its core.
        if credential is None or context.now() >= credential.svid.not_after:
            credential = self.certificate.request.take(installed.identity)
            if credential is None:
                return False
        key = context.node.new_key()
        await context.core.call(
            CoreClient.workload_add,
            key,
            self.name,
            installed.identity,
            installed.workload.addresses,
            netns_fd=installed.captured.netns_fd,
        )
        try:
            limits = await self._give_limits(key)
            bundle = await self.certificate.give(key, installed.identity, credential)
            await context.capture.take_listeners(installed.captured, {})
            installed.key, installed.roles, installed.limits = key, set(), limits
            await self._give_listeners(installed)
            await settle_ring(context, installed, self.wanted_state)
        except BaseException:
            with contextlib.suppress(CoreError):
                await context.core.call(CoreClient.workload_remove, key)
            if installed.reader == (incarnation, key):
                installed.reader = None
            raise
        installed.credential, installed.bundle, installed.incarnation = credential, bundle, incarnation
        context.node.moved_on()
        log.info("workload %s was handed to the core, pid %s", self.name, context.core.pid)
        return True

    async def _stay(self, installed: Installed) -> float | None:
        wanted = self.wanted_state
        assert wanted is not None
        await self._publish()
        remaining = self._remaining(self._published_at)
        if self.phase is Phase.JOINING and remaining <= 0:
            self._enter(Phase.ENROLLED)
            await self.context.node.push()
            log.info("workload %s is enrolled", self.name)
        until_renewal = await self.certificate.renew(installed, wanted.identity(self.context.node.trust_domain))
        if installed.workload != wanted and installed.identity == wanted.identity(self.context.node.trust_domain):
            if wanted.host != installed.workload.host:
                installed.captured = await self.context.capture.enrol(wanted)
            if wanted.addresses != installed.workload.addresses:
                await self._readdress(installed, wanted)
            if wanted.on_failure is not installed.workload.on_failure:
                await self.context.capture.configure(wanted)
            installed.workload = wanted
            await self.context.node.push()
        await self._look_again(installed)
        waits = [until_renewal, LONGEST_SLEEP_S, LOOK_AGAIN_S]
        if self.phase is Phase.JOINING:
            waits.append(remaining)
        return max(0.0, min(waits))

    async def _look_again(self, installed: Installed) -> None:
        """Covers devices and addresses that have come since."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = now
        if await self.context.capture.look_again(installed.workload):
            before = {text for _, text, _ in self.astray(installed)}
            installed.captured = await self.context.capture.enrol(installed.workload)
            for _, warning, _ in self.astray(installed):
                if warning not in before:
                    log.warning("workload %s: %s", self.name, warning)

    async def _readdress(self, installed: Installed, wanted: Workload) -> None:
        """It has more addresses or fewer: no connection notices."""
        installed.captured = await self.context.capture.enrol(wanted)
        if gone := installed.captured.spare():
            await self.context.core.call(CoreClient.workload_unlisten, installed.key, *gone)
            installed.roles -= gone.keys()
            close_all(gone.values())
        await self.context.core.call(CoreClient.workload_addresses, installed.key, wanted.addresses)
        await self._give_listeners(installed)
        log.info("workload %s has the addresses %s", self.name, ", ".join(map(str, wanted.addresses)))

    async def _withdraw(self) -> None:
        self.certificate.request.cancel()
        before = self.phase
        self._enter(Phase.LEAVING)
        try:
            await self.context.node.publish()
        except BaseException:
            # Peers still tunnel here, and the time that they are given has not begun.
            self._enter(before)
            raise
        await self.context.node.push()
        log.info("workload %s is leaving the mesh", self.name)

    async def _leave(self, installed: Installed) -> float | None:
        if self._should_stay(installed):
            await self._join()
            return 0
        remaining = self._remaining(self._phase_since)
        if remaining > 0:
            return remaining
        await self.context.capture.stop_new(installed.captured)
        installed.direct_since = asyncio.get_running_loop().time()
        log.info("workload %s: new connections are no longer captured", self.name)
        return 0

    async def _drain(self, installed: Installed) -> float | None:
        if self._should_stay(installed):
            assert self.wanted_state is not None
            installed.captured = await self.context.capture.enrol(self.wanted_state)
            await self._give_listeners(installed)
            await self._join()
            return 0
        if installed.roles & set(FROM_OUTSIDE):
            # Handshakes that were under way when capture ended come to their end first.
            remaining = self._remaining(installed.direct_since)
            if remaining > 0:
                return remaining
            await self._close_inbound(installed)
        if await self._live() and not self._moved(installed):
            return _DRAIN_POLL_S
        await self._remove(installed)
        return 0

    async def _close_inbound(self, installed: Installed) -> None:
        """The outbound listener stays to the end: a captured SYN may be under way to it."""
        await self.context.core.call(CoreClient.workload_unlisten, installed.key, *FROM_OUTSIDE)
        for role in FROM_OUTSIDE:
            installed.roles.discard(role)
            if (fd := installed.captured.listeners.pop(role, -1)) >= 0:
                os.close(fd)

    async def _abandon(self, installed: Installed, why: str) -> None:
        log.warning("workload %s leaves at once: %s", self.name, why)
        self._enter(Phase.LEAVING)
        await self.context.node.publish()
        await self.context.capture.stop_new(installed.captured)
        await self._remove(installed)

    async def _remove(self, installed: Installed) -> None:
        installed.removing = True
        self.certificate.forget()
        # A core that is gone, or never had it, has nothing to remove.
        with contextlib.suppress(CoreError):
            await self.context.core.call_all(CoreClient.workload_forget, self.name)
        await self.context.capture.release(installed.captured)
        self.installed = None
        self._enter(Phase.ABSENT)
        await self.context.node.push()
        log.info("workload %s is no longer enrolled", self.name)

    def _limits(self) -> Limits:
        """What it may have: by the mesh state, where that says something, else by the node's configuration."""
        source = self.wanted_state or (self.installed.workload if self.installed is not None else None)
        return source.limits.over(self.context.limits) if source is not None else self.context.limits

    async def _give_limits(self, key: int) -> Limits:
        limits = self._limits()
        await self.context.core.call(CoreClient.workload_limits, key, limits)
        return limits

    async def _give_listeners(self, installed: Installed) -> None:
        missing = installed.lacking()
        if installed.workload.host is not None and self.context.node.waits_for_neighbours(self.name):
            # They share port 15008: the core is to know all of them before it answers there for one.
            missing = {role: fd for role, fd in missing.items() if role not in SHARED}
        if missing:
            await self.context.core.call(CoreClient.workload_listen, installed.key, missing)
            installed.roles.update(missing)

    async def _live(self) -> int:
        """Connections of this workload, in all cores."""
        answers = await self.context.core.call_all(CoreClient.stats)
        rows = [row for _link, (_core, rows) in answers for row in rows]
        return sum(row.connections for row in rows if row.workload == str(self.name))

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._phase_since = asyncio.get_running_loop().time()

    def _remaining(self, since: float | None) -> float:
        """Seconds that are left of `settle`; all of it when its beginning is not known."""
        now = asyncio.get_running_loop().time()
        return (now if since is None else since) + self.context.settle - now
