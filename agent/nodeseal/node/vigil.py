"""The agent's watch over what nobody asks for, and nothing else would tell: mutual TLS that is silently lost.

Every few seconds it looks at what other nodes have published, at what was enrolled here and is no longer this node's,
and at handshakes that fail. What it finds is in the status at once it has stood for a while (nodes learn of a change at
different times), and in the log, once, when it begins and when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from nodeseal.contracts.refusal import Refusal
from nodeseal.cores.client import CoreClient, CoreError
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.trust import Trust
from nodeseal.node import peers
from nodeseal.node.leftovers import HasCgroup, Leftovers
from nodeseal.node.strays import Strays
from nodeseal.sources.source import Description, Publishers

log = logging.getLogger("nodeseal.agent")

PATIENCE_S = 10.0
"""Beside `settle`: what stands for so long is no matter of nodes that learn of a change at different times."""

LOOK_S = 5.0
_SHOWN_S = 600.0
_CORE_PATIENCE_S = 3.0
_LOOK_AGAIN_S = 30.0  # at the connections and refusals: tens of thousands cost the core some milliseconds


class Handshakes:
    """Notices tunnels that do not come to be, of this node's workloads as clients, and plaintext that should not have
    come: by counters, and when these move by a look at whom the core notes as refused."""

    def __init__(self, core: CoreSupervisor, clock: Callable[[], float], strays: Strays | None = None) -> None:
        self.strays = strays or Strays(clock)
        self._core = core
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._look = False
        self._looked = float("-inf")
        self._failures: dict[str, tuple[float, Refusal]] = {}
        """Workload -> when its last one was, and which."""

    async def look(self) -> None:
        """Raises CoreError when the core does not answer."""
        answers = await self._core.call_all(CoreClient.stats)
        counts: dict[str, int] = {}
        for _link, (_stats, rows) in answers:
            for row in rows:
                counts[str(row.workload)] = counts.get(str(row.workload), 0) + row.tls_failed + row.refused
        self._look = self._look or any(count > self._counts.get(name, 0) for name, count in counts.items())
        self._counts = counts
        now = self._clock()
        if not self._look or now - self._looked < _LOOK_AGAIN_S:
            return
        self._look, self._looked = False, now
        for _link, refusals in await self._core.call_all(CoreClient.refusals):
            self.strays.take(refusals)
            for one in refusals:
                if one.direction != "outbound" or one.kind != "handshake" or one.workload is None:
                    continue
                at = now - one.last_ms / 1000
                known = self._failures.get(one.workload)
                if known is None or known[0] < at:
                    self._failures[one.workload] = at, one

    def problems(self) -> Iterator[Problem]:
        """Those of the last minutes."""
        now = self._clock()
        self._failures = {name: failed for name, failed in self._failures.items() if now - failed[0] < _SHOWN_S}
        for name, (_at, one) in sorted(self._failures.items()):
            yield Problem(
                ProblemWord.HANDSHAKE_FAILED,
                f"{name}: no tunnel to {one.destination}: {one.reason}",
                "its connections there are reset; 'nodeseal connections' has all of them",
                name,
            )


class Vigil:
    """See the module's text. All methods belong to the event loop."""

    def __init__(
        self,
        node: str,
        source: Description,
        run_dir: Path,
        core: CoreSupervisor,
        settle: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.leftovers = Leftovers(node, run_dir)
        self.strays = Strays(clock)
        self.handshakes = Handshakes(core, clock, self.strays)
        self._node = node
        self._source = source
        self._patience = PATIENCE_S + settle
        self._clock = clock
        self._mesh: Mesh | None = None
        self._publishers: Publishers = {}
        self._own: Trust | None = None
        self._lacking: tuple[Problem, ...] = ()
        """What comes of these three; they are large, and change seldom."""
        self._pending: tuple[WorkloadName, ...] = ()
        self._since: dict[tuple[ProblemWord, str | None], float] = {}
        self._told: dict[tuple[ProblemWord, str | None], Problem] = {}

    def take(
        self, mesh: Mesh | None, publishers: Publishers, own: Trust | None, pending: Sequence[WorkloadName] = ()
    ) -> None:
        """The mesh state and the publications as the source has them now, this node's CA, and those of its workloads
        that are on their way to be enrolled."""
        self._pending = tuple(pending)
        if mesh is self._mesh and publishers is self._publishers and own == self._own:
            return
        self._mesh, self._publishers, self._own = mesh, publishers, own
        found: list[Problem] = []
        if mesh is not None:
            found += peers.missing(mesh, self._node, self._source, publishers)
            found += peers.claimed_twice(mesh)
            if own is not None:
                found += peers.foreign(mesh, self._node, publishers, own)
        self._lacking = tuple(found)

    async def run(self, tell: Callable[[], None], has_cgroup: HasCgroup) -> None:
        """Looks every few seconds; `tell` calls `take` before. Never ends."""
        while True:
            await asyncio.sleep(LOOK_S)
            tell()
            try:
                await self.look(has_cgroup)
            except Exception as error:
                # Whatever it is: nobody would miss a watch that has ended.
                log.warning("cannot look at what is lost: %s", " ".join(str(error).split()) or repr(error))

    async def look(self, has_cgroup: HasCgroup) -> None:
        """The log gets what is new, and what is over."""
        await self.leftovers.look(has_cgroup)
        # What is the matter with the core is told by the status.
        with contextlib.suppress(CoreError, TimeoutError):
            async with asyncio.timeout(_CORE_PATIENCE_S):
                await self.handshakes.look()
        standing = {_key(problem): problem for problem in self.problems()}
        for key, problem in standing.items():
            if key not in self._told:
                log.warning("%s: %s; %s", problem.word.value, problem.text, problem.remedy)
        for key, problem in self._told.items():
            if key not in standing:
                log.info("no longer %s: %s", problem.word.value, problem.text)
        self._told = standing

    def problems(self) -> Iterable[Problem]:
        """What has stood for long enough; see nodeseal.node.problems."""
        left = list(self.leftovers.problems(self._mesh)) if self._mesh is not None else []
        found = [*self._lacking, *left, *map(_stuck, self._pending)]
        now = self._clock()
        self._since = {_key(problem): self._since.get(_key(problem), now) for problem in found}
        standing = [problem for problem in found if now - self._since[_key(problem)] >= self._patience]
        return [*standing, *self.handshakes.problems(), *self.strays.problems(self._mesh)]


def _stuck(name: WorkloadName) -> Problem:
    text = f"{name}: the agent has not enrolled it yet, and no step of that has failed"
    return Problem(ProblemWord.NOT_ENROLLED, text, "see the agent's log; if it stays, restart the agent", str(name))


def _key(problem: Problem) -> tuple[ProblemWord, str | None]:
    return problem.word, problem.about
