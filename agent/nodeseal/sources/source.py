"""The seam between the agent and the source of its mesh state: where it reads the state, and publishes what it has
enrolled.

A peer opens tunnels to what a node has published, not to what the mesh state wishes for. So a source does both: it
reads the state with all nodes' publications in it, and it writes the publication of its own node. The agent knows its
source by this interface alone; nodeseal.daemon chooses one by the configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nodeseal.mesh.model import Mesh, Workload, WorkloadName
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.trust import Trust
from nodeseal.sources.arrival import Arrival, ArrivalError

MAX_LINES = 100
"""Most problems that one MeshStateError shows."""

Publishers = Mapping[str, Trust | None]
"""The nodes that have a publication, each with what it says of its CA: None when it says nothing."""

Reference = Mapping[str, str]
"""By which a source is found again without a configuration: noted in the run directory, as JSON."""


class PublicationError(Exception):
    """A publication could not be written or withdrawn; one line."""


class SourceAwayError(PublicationError):
    """The source is not there now. What was published in it may come back with it."""


class ClaimError(Exception):
    """The node belongs to another agent, or the claim cannot be made; one line."""


class Concern(Enum):
    """What a problem of the mesh state is about."""

    STATE = "state"
    """The state itself: it cannot be used."""
    PUBLICATION = "publication"
    """What a node has published. The state counts."""
    UNREAD = "unread"
    """Something that looks like a part of the state, and is none. The state counts."""
    OBJECT = "object"
    """One object of the state: of it counts what it said before. The state counts."""
    AWAY = "away"
    """Where the state comes from: it cannot be followed now. What was known counts."""


@dataclass(frozen=True, slots=True)
class StateProblem:
    """One thing that is wrong with the mesh state. `text`: one line, what and where."""

    text: str
    concern: Concern = Concern.STATE

    def __str__(self) -> str:
        return self.text


class MeshStateError(Exception):
    """The mesh state, or a publication in it, is not as it should be. The text has one line per problem.

    `used`: the state counts all the same.
    """

    def __init__(self, problems: Iterable[StateProblem]) -> None:
        self.problems = tuple(problems)
        self.used = all(problem.concern is not Concern.STATE for problem in self.problems)
        shown = [str(problem) for problem in self.problems[:MAX_LINES]]
        if len(self.problems) > MAX_LINES:
            shown.append(f"and {len(self.problems) - MAX_LINES} more problems")
        super().__init__("\n".join(shown))


@dataclass(frozen=True, slots=True)
class Description:
    """What a source is, in words for people."""

    state: str
    """Where the state is, as in "the mesh state /etc/nodeseal/mesh"."""
    publications: str
    """Where nodes publish, as in "no node has published anything in /etc/nodeseal/mesh/enrolled"."""
    sharing: str
    """What lets another node publish there too, as in "start its agent, or share that directory with it"."""

    def __str__(self) -> str:
        return self.state


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself, for people who look from outside. `problems`: the worst first."""

    enrolled: int
    wanted: int
    problems: tuple[Problem, ...] = ()


class Claim(Protocol):
    """The right to publish for a node, held until it is released or the process ends."""

    async def release(self, *, undo: bool = False) -> None:
        """With `undo`, for a start that failed, nothing is left that was not there before."""


class Source(ABC):
    """The mesh state as one node sees it, and the node's own publication in it.

    All methods belong to the event loop, and none blocks it, but `verify`.
    """

    node: str
    """The node that publishes."""

    takes_reports: bool = False
    """`report` leads somewhere."""

    publishers: Publishers
    """As of the latest look of `changes`, whether that was worth an item or not. Replaced as a whole."""

    @abstractmethod
    def describe(self) -> Description:
        """What it is, for status and messages."""

    @abstractmethod
    def reference(self) -> Reference:
        """By which it is found again."""

    @abstractmethod
    def verify(self) -> Iterator[str]:
        """Why an agent could not use it now, one line each. Changes nothing. May wait for a disk or a network. Raises
        OSError."""

    async def examine(self) -> Sequence[str]:
        """What does not work now of what an agent needs of it, one line each, where that is no reason not to start.
        Changes nothing."""
        return ()

    @abstractmethod
    async def load(self) -> Mesh:
        """The mesh state as it is at this moment. Workloads that their node has published are ENROLLED, all others
        ABSENT. Raises MeshStateError when it cannot be used."""

    @abstractmethod
    def changes(self) -> AsyncIterator[Mesh | MeshStateError]:
        """First the present state, then an item for everything that alters something. Never ends by itself.

        A Mesh is to be used from then on, and says that all is well, unless a MeshStateError follows it at once. A
        MeshStateError tells what is wrong from then on, until the next item; the last Mesh stays good. One that comes
        first means that there is no good state yet.
        """

    @abstractmethod
    async def claim(self) -> Claim:
        """The right to publish for the node. Raises ClaimError when it is another agent's."""

    @abstractmethod
    async def publish(self, workloads: Iterable[Workload], trust: Trust | None = None) -> bool:
        """Says that exactly these workloads of the node are enrolled, as they are captured. Atomic for each of them:
        readers see what was said of it before, or what is said now; one that stays is never absent in between.

        Writes nothing if that is published already, and returns whether it wrote. Raises PublicationError.
        """

    @abstractmethod
    async def withdraw(self) -> str | None:
        """Says that no workload of the node is enrolled, and gives up the claim. What was withdrawn, for people; None
        when nothing was published, or when it is another agent's by now, whose it stays.

        Raises PublicationError, SourceAwayError.
        """

    async def expect(self, arrival: Arrival, present: Mesh | None) -> WorkloadName | None:
        """Tells of a pod whose network has just been made. Which workload of this node it is in the mesh state from
        now on, with the network namespace and the addresses that it has arrived with: a mesh that says so may still be
        on its way. None: it is not to be enrolled. May be asked before `changes` is. Raises ArrivalError.

        `present`: the mesh state that the node has. A source that knows nothing of pods answers by it.
        """
        if present is None:
            raise ArrivalError(f"there is no mesh state in {self.describe()} yet")
        workload = present.workloads.get(arrival.name)
        wanted = workload is not None and workload.wanted and workload.node == self.node
        return arrival.name if wanted else None

    def enrolled_namespaces(self) -> frozenset[str] | None:
        """Those with pods that are to be enrolled, and those that say so of all of theirs. None: it does not know."""
        return None

    async def depart(self, arrival: Arrival) -> None:
        """Tells that the network of a pod is about to go. Never raises. One that knows nothing of pods passes it
        over."""
        del arrival

    def report(self, report: NodeReport) -> None:
        """How the node is, where the source has a place to tell it: it is told when there is time for it. Never
        raises."""
        del report
