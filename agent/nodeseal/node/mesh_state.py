"""The mesh state as this node follows it, and the mesh that its cores decide by.

That mesh is the source's, as far as it is for cores, with three changes: this node's workloads have the phases of their
enrolments (a publication of our own says nothing that we do not know better), a workload that is leaving stays in it
until it has left, and its address and identity are those it was captured with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from nodeseal.backoff import Backoff
from nodeseal.clock import utc_now
from nodeseal.enrolment.workload import Enrolment
from nodeseal.mesh.model import Mesh, MeshDifference, MeshError, Phase, Workload, WorkloadName, changed_keys
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.trust_anchor import TRUST_ANCHORS, TrustAnchor
from nodeseal.mesh.workload import WORKLOADS
from nodeseal.sources.source import Concern, MeshStateError, Source, StateProblem

log = logging.getLogger("nodeseal.agent")

_WHERE_USED = (
    (Concern.PUBLICATION, ProblemWord.PUBLICATION, "see the status of the node whose publication it is"),
    (Concern.UNREAD, ProblemWord.UNREAD_FILE, "move or rename it"),
    (Concern.AWAY, ProblemWord.MESH_STATE_AWAY, "it is tried again; what was known counts"),
    (Concern.OBJECT, ProblemWord.MESH_OBJECT, "correct it; of what is wrong counts what it said before"),
)


class InForce(StrEnum):
    """What counts while something is wrong with the mesh state."""

    PRESENT = "present"
    """The state as it is now: only a publication is bad."""
    FORMER = "former"
    """The last good state."""
    NONE = "none"
    """Nothing: there never was a good one."""


@dataclass(frozen=True, slots=True)
class MeshFailure:
    """What is wrong with the mesh state, since when, and what counts meanwhile."""

    error: MeshStateError
    since: datetime
    in_force: InForce

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems: one for all that is of a kind, the status has each."""
        found = self.error.problems
        if self.in_force is InForce.FORMER:
            yield _of_several(ProblemWord.MESH_STATE, found, "correct it; the last good state stays in force")
        elif self.in_force is InForce.NONE:
            yield _of_several(ProblemWord.NO_MESH_STATE, found, "correct it; nothing is enrolled before")
        else:
            for concern, word, remedy in _WHERE_USED:
                if of_kind := [one for one in found if one.concern is concern]:
                    yield _of_several(word, of_kind, remedy)


def _of_several(word: ProblemWord, found: Sequence[StateProblem], remedy: str) -> Problem:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Problem(word, f"{found[0].text}{more}", remedy)


class MeshState:
    """What the source has given last. `use` it before anything of it is asked for."""

    def __init__(self, source: Source, node: str, trust_domain: str, issuer: str) -> None:
        """`trust_domain`: the issuer's, whose states alone are used; `issuer`: for people, see Issuer.describe."""
        self.source = source
        self.present: Mesh | None = None
        """The last good state; None as long as there is none."""
        self.ours: dict[WorkloadName, Workload] = {}
        """This node's workloads in it."""
        self.anchors: tuple[TrustAnchor, ...] = ()
        """The trust anchors in it. Replaced when they change."""
        self.failure: MeshFailure | None = None
        self._node = node
        self._trust_domain = trust_domain
        self._issuer = issuer

    async def follow(self, take: Callable[[Mesh], Awaitable[None]], fail: Callable[[], Awaitable[None]]) -> None:
        """Calls `take` with each good state, `fail` when something is wrong with it. Never ends."""
        backoff = Backoff(1.0, 60.0)
        while True:
            try:
                async for item in self.source.changes():
                    error = self._foreign(item) if isinstance(item, Mesh) else item
                    if isinstance(item, Mesh) and error is None:
                        self.failure = None
                        await take(item)
                        backoff.reset()
                    elif error is not None:
                        self._note(error)
                        await fail()
            except Exception as error:
                # The last good state stays in force, as for a bad edit.
                text = f"it cannot be followed: {' '.join(str(error).split()) or repr(error)}"
                self._note(MeshStateError([StateProblem(text)]))
            await asyncio.sleep(backoff.next())

    async def load(self) -> Mesh | None:
        """The state as it is at this moment; None when it cannot be used."""
        try:
            loaded = await self.source.load()
        except MeshStateError:
            return None
        return loaded if self._foreign(loaded) is None else None

    def use(self, mesh: Mesh | None) -> None:
        """This is the present state from now on."""
        before, self.present = self.present, mesh
        self.ours = self._of_node(before, mesh)
        anchors = tuple(mesh.of(TRUST_ANCHORS).values()) if mesh is not None else ()
        if anchors != self.anchors:
            self.anchors = anchors

    def _of_node(self, before: Mesh | None, mesh: Mesh | None) -> dict[WorkloadName, Workload]:
        """This node's workloads in `mesh`; they are known in the state before."""
        if mesh is None:
            return {}
        changed = changed_keys(before, mesh, WORKLOADS) if before is not None else None
        if changed is None:
            return {name: one for name, one in mesh.workloads.items() if one.node == self._node}
        ours = {name: one for name, one in self.ours.items() if name not in changed}
        for name in changed:
            if (one := mesh.workloads.get(name)) is not None and one.node == self._node:
                ours[name] = one
        return ours

    def effective(self, enrolments: Iterable[Enrolment]) -> Mesh | None:
        """What the cores are to decide by; see the module's text."""
        source = self.present
        if source is None:
            return None
        source = source.for_cores()
        ours = dict.fromkeys(self.ours, Phase.ABSENT)
        kept = []
        for enrolment in enrolments:
            wanted = source.workloads.get(enrolment.name)
            if wanted is not None and wanted.node != self._node:
                # It has moved. Its new node's publication tells its phase, and its new address is where it is to be
                # found; what is left of it here drains without being in the model.
                continue
            ours[enrolment.name] = enrolment.phase
            if enrolment.installed is not None:
                installed = enrolment.installed.workload
                # For an agent that adopts: one that is kept only because it is leaving is not wanted.
                asked = wanted is not None and wanted.wanted
                now = wanted if wanted is not None else installed
                kept.append(replace(installed, phase=enrolment.phase, mode=now.mode, exclude=now.exclude, wanted=asked))
        mesh = source.with_phases(ours)
        changed = [workload for workload in kept if mesh.workloads.get(workload.key) != workload]
        for workload in changed:
            # One at a time: an address that the mesh state gives to another by now belongs to that other.
            with contextlib.suppress(MeshError):
                mesh = mesh.apply(MeshDifference(mesh.trust_domain, {WORKLOADS.name: (workload,)}))
        return mesh

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        if self.failure is not None:
            yield from self.failure.problems()

    def _foreign(self, mesh: Mesh) -> MeshStateError | None:
        if mesh.trust_domain == self._trust_domain:
            return None
        text = f"trust_domain: expected {self._trust_domain}, as in {self._issuer}, found {mesh.trust_domain}"
        return MeshStateError([StateProblem(text)])

    def _note(self, error: MeshStateError) -> None:
        in_force = InForce.PRESENT if error.used else InForce.FORMER if self.present is not None else InForce.NONE
        self.failure = MeshFailure(error, utc_now(), in_force)
        first, *rest = str(error).splitlines() or [""]
        more = f" (and {len(rest)} more)" if rest else ""
        effect = {
            InForce.PRESENT: "is used, but something is wrong in it",
            InForce.FORMER: "is not used, the last good one stays in force",
            InForce.NONE: "cannot be used, and there never was a good one: nothing is enrolled",
        }[in_force]
        log.warning("mesh state %s %s: %s%s", self.source.describe(), effect, first, more)
