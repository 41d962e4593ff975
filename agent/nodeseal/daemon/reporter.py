"""Tells the source how the node is, where it has a place for that: what `nodeseal status` says, in short."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from nodeseal.api import status_view
from nodeseal.contracts.status import Status
from nodeseal.mesh.model import Phase
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.node.lasting import lasting
from nodeseal.node.node import Node
from nodeseal.sources.source import NodeReport, Source

_LOOK_S = 1.0
_PROBLEMS_S = 10.0
_OF_OTHERS = frozenset({ProblemWord.NODE_UNKNOWN, ProblemWord.PEER_NOT_ENROLLED, ProblemWord.PUBLICATION})
_WORDS = {word.value: word for word in ProblemWord}


class Reporter:
    """Of an active agent. Belongs to the event loop."""

    def __init__(self, node: Node, source: Source) -> None:
        self._node = node
        self._source = source
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From the moment at which the agent has begun."""
        if self._source.takes_reports:
            self._task = asyncio.create_task(lasting("reporter", self._run), name="reporter")

    async def stop(self) -> None:
        """What was told stays as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        told: tuple[int, int] | None = None
        at = 0.0
        while True:
            counts = self._counts()
            if counts != told or clock() - at >= _PROBLEMS_S:
                told, at = counts, clock()
                self._source.report(report_of(await status_view.status(self._node)))
            await asyncio.sleep(_LOOK_S)

    def _counts(self) -> tuple[int, int]:
        """What there is to tell at once: whoever has set a label waits for it. Without asking a core."""
        wanted = [one for one in self._node.enrolments.values() if one.wanted_state and one.wanted_state.wanted]
        return sum(one.phase is Phase.ENROLLED for one in wanted), len(wanted)


def report_of(status: Status) -> NodeReport:
    """The same in short, without what concerns other nodes: all nodes of a cluster see that at once, and would say it
    at once, of themselves."""
    wanted = [one for one in status.workloads if one.wanted]
    own = {address for one in status.workloads for address in one.addresses}
    problems = (Problem(_WORDS[one.word], one.text, one.remedy, one.about) for one in status.problems)
    kept = tuple(one for one in problems if one.word not in _OF_OTHERS and not _is_elsewhere(one, own))
    return NodeReport(sum(one.enrolled for one in wanted), len(wanted), kept)


def _is_elsewhere(problem: Problem, own: Collection[str]) -> bool:
    """An address that none of this node's workloads claims."""
    return problem.word is ProblemWord.ADDRESS_CLAIMED_TWICE and problem.about not in own
