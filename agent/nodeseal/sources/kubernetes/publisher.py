"""What this node publishes in Kubernetes: its MeshEndpoints and its MeshNode, written and kept as they should be.

What is published is known of this agent's own writes, and of the objects that the source follows anyway: where the two
differ, the API server is asked, for what is followed comes a moment later. So what somebody else has changed or removed
is written again.

Objects have their Node for an owner: the cluster's garbage collector removes them with it. A Node that was removed and
is there again has another UID; so it is asked for anew when an object has vanished.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path

from nodeseal.backoff import Backoff
from nodeseal.clock import utc_now
from nodeseal.kubernetes.access import AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import NODES, Key, Node
from nodeseal.local import run_directory
from nodeseal.mesh.address import Address
from nodeseal.mesh.trust import Trust
from nodeseal.mesh.workload import Workload
from nodeseal.sources.kubernetes import shards
from nodeseal.sources.kubernetes.holder import Holder, refusal, seconds_since
from nodeseal.sources.kubernetes.mesh_objects import (
    MESH_ENDPOINTS,
    MESH_NODES,
    NODE_NAME_MAX,
    EndpointsSpec,
    MeshEndpoints,
    MeshNode,
    NodeStatus,
    ObjectError,
    Owner,
    number_of,
    object_name,
    own_key,
    write_trust,
    write_workload,
)
from nodeseal.sources.kubernetes.node_status import Pace, node_status
from nodeseal.sources.kubernetes.owned import Owned, OwnKind
from nodeseal.sources.source import ClaimError, NodeReport, PublicationError, SourceAwayError

log = logging.getLogger("nodeseal.agent")

_ENDPOINTS = OwnKind(MESH_ENDPOINTS, "MeshEndpoints", "spec", EndpointsSpec)
_NODE = OwnKind(MESH_NODES, "MeshNode", "status", NodeStatus)

_LISTED_S = 10.0
"""So long it is waited for what is followed to be known."""
_LAG_S = 2.0
"""What is followed may be so much later than what was written."""
_FIRST_S, _LONGEST_S = 1.0, 30.0
_LATER = frozenset({429, 500, 502, 503, 504})
"""What an API server answers that is about to start or to go, or that has too much to do."""


class NodeClaim:
    """The lock of the run directory is what holds it; the MeshNode tells others."""

    def __init__(self, held: asyncio.Event) -> None:
        self._held = held
        held.set()

    async def release(self, *, undo: bool = False) -> None:
        """See Claim.release. The MeshNode is not renewed any more: another agent may have taken over. Nothing was
        written for the claim alone."""
        self._held.clear()


class Publisher:
    """All methods belong to the event loop."""

    def __init__(
        self,
        api: Api,
        node: str,
        holder: Holder,
        version: str,
        endpoints: Followed[MeshEndpoints],
        nodes: Followed[MeshNode],
        *,
        addresses: Callable[[], Sequence[Address]] = tuple,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`version`: the agent's; `endpoints` and `nodes`: all of the cluster; `addresses`: of the Node, as far as
        they are known."""
        self._api = api
        self._node = node
        self._holder = holder
        self._version = version
        self._endpoints = endpoints
        self._nodes = nodes
        self._addresses = addresses
        self._now, self._clock, self._rand = now, clock, rand
        self._writing = asyncio.Lock()
        self._owner: Owner | None = None
        self._objects: dict[int, Owned[EndpointsSpec]] | None = None
        """By their numbers; None: not looked at yet."""
        self._written: dict[int, float] = {}
        """When each was written last."""
        self._own_node = Owned(api, _NODE, node)
        self._trust: Trust | None = None
        self._report: NodeReport | None = None
        self._pace = Pace(clock(), rand())
        self._told_at = float("-inf")
        self._told = asyncio.Event()
        self._held = asyncio.Event()
        self._backoff = Backoff(_FIRST_S, _LONGEST_S, rand)
        self._not_before = float("-inf")
        self._failure: PublicationError | None = None
        self._was_away = False
        """Nobody has answered when it failed last."""
        self._watched_since: float | None = None
        """As it was then."""

    async def claim(self) -> NodeClaim:
        """Looks whose the node is; what is published from then on says it. Where the API server does not tell, that is
        looked at later, by `publish`: nothing is written before. Raises ClaimError."""
        try:
            if (why := await self._refusal(await self._own_node.look())) is not None:
                raise ClaimError(why)
        except (AwayError, RefusedError, AccessError, ValueError) as error:
            log.warning("whether another agent has the node %s cannot be looked at now: %s", self._node, error)
        return NodeClaim(self._held)

    async def publish(self, workloads: Iterable[Workload], trust: Trust | None) -> bool:
        """See Source.publish. Raises PublicationError, and SourceAwayError: the API server is not there, or does not
        let this agent: with a right or a kind that is missing an agent still has its node to look after."""
        wanted = {one.key: write_workload(one) for one in workloads}
        async with self._write("publish the enrolled workloads", SourceAwayError):
            await self._hold()
            objects = await self._known_objects()
            await self._doubt(objects)
            owner = await self._known_owner()
            wrote = False
            present = {number: tuple(one.content.workloads) for number, one in objects.items() if one.content}
            for number, contents in shards.steps({key: one for key, one in present.items() if one}, wanted):
                wrote = True
                self._written[number] = self._clock()
                if contents:
                    await self._object(objects, number).put(EndpointsSpec(self._node, list(contents)), owner)
                else:
                    await objects.pop(number).remove()
            for number, one in list(objects.items()):
                if one.content is None or not one.content.workloads:
                    wrote = await objects.pop(number).remove() or wrote
                elif not one.is_as(one.content, owner):
                    await one.put(one.content, owner)
                    wrote = True
            self._trust = trust
            told = self._own_node.content
            if told is None or told.trust != write_trust(trust) or told.holder != self._holder.spec:
                await self._tell(owner)
                wrote = True
            return wrote

    def report(self, report: NodeReport) -> None:
        """See Source.report."""
        self._report = report
        self._told.set()

    async def run(self) -> None:
        """Renews the MeshNode while the node is claimed, and brings it what is reported. Never ends, and never
        raises."""
        while True:
            await self._held.wait()
            due = self._due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due):
                    await self._told.wait()
            self._told.clear()
            if not self._held.is_set() or self._due() > 0:
                continue
            try:
                async with self._write("tell how the node is"):
                    await self._hold()
                    await self._tell(await self._known_owner())
            except PublicationError as error:
                log.debug("%s", error)  # whoever publishes hears of it too
                await asyncio.sleep(max(0.0, self._not_before - self._clock()))

    async def withdraw(self) -> str | None:
        """See Source.withdraw. Needs nothing that is followed. Raises PublicationError, SourceAwayError."""
        self._not_before = float("-inf")
        async with self._write("withdraw the publication"):
            status = await self._own_node.look()
            if await self._is_other_s(status):
                return None
            listing = await self._api.list_all(MESH_ENDPOINTS, {})
            names = {one.metadata.name for one in listing.items} | {name for _, name in listing.unread}
            mine = [name for name in sorted(names) if number_of(name, self._node) is not None]
            for name in mine:
                await Owned(self._api, _ENDPOINTS, name).remove()
            there = await self._own_node.remove()
            self._objects, self._trust = None, None
            if not mine and not there:
                return None
            return f"the MeshNode {self._node} and its MeshEndpoints ({len(mine)})"

    def _due(self) -> float:
        status = self._own_node.content
        if status is None:
            # Whoever publishes first writes it.
            return _LONGEST_S
        wanted = self._status()
        worse = (wanted.summary, _states(wanted)) != (status.summary, _states(status))
        other = _without_time(wanted) != _without_time(status)
        return self._pace.due(self._clock(), worse=worse, other=other)

    def _status(self) -> NodeStatus:
        before = self._own_node.content
        addresses = self._addresses()
        return node_status(self._version, self._holder, self._trust, self._report, before, self._now(), addresses)

    async def _tell(self, owner: Owner) -> None:
        await self._own_node.put(self._status(), owner, self._check)
        self._pace.wrote(self._clock(), self._rand())
        self._told_at = self._clock()

    @contextlib.asynccontextmanager
    async def _write(self, what: str, refused: type[PublicationError] = PublicationError) -> AsyncIterator[None]:
        """One at a time; what fails is not tried again at once. Raises PublicationError, `refused` when the API server
        does not do it."""
        async with self._writing:
            # A watch that was begun since says that the server is back.
            patient = not self._was_away or self._endpoints.watching_since in (None, self._watched_since)
            if self._failure is not None and self._clock() < self._not_before and patient:
                raise type(self._failure)(str(self._failure))
            after, self._was_away = None, False
            try:
                yield
            except AwayError as error:
                self._was_away = True
                failure: PublicationError = SourceAwayError(f"cannot {what}: {error}")
            except RefusedError as error:
                after = error.retry_after
                kind = SourceAwayError if error.code in _LATER else refused
                failure = kind(f"cannot {what}: {error}")
            except AccessError as error:
                failure = refused(f"cannot {what}: {error}")
            except (shards.FullError, ValueError) as error:
                failure = PublicationError(f"cannot {what}: {error}")
            except PublicationError as error:
                self._was_away = isinstance(error, SourceAwayError)
                failure = error
            else:
                self._failure = None
                self._backoff.reset()
                return
            self._failure, self._watched_since = failure, self._endpoints.watching_since
            self._not_before = self._clock() + max(self._backoff.next(), min(after or 0.0, _LONGEST_S))
            raise failure

    async def _known_owner(self) -> Owner:
        if len(self._node) > NODE_NAME_MAX:
            raise PublicationError(f"the name of the node has more than {NODE_NAME_MAX} characters: give it another")
        if self._owner is None:
            found = await self._kubernetes_node()
            if found is None:
                raise PublicationError(
                    f"the API server has no Node {self._node}, for which this agent would publish: give the agent the "
                    "name of its Node"
                )
            self._owner = Owner("v1", "Node", self._node, found.metadata.uid)
        return self._owner

    async def _kubernetes_node(self) -> Node | None:
        return await self._api.get(NODES, own_key(self._node))

    async def _hold(self) -> None:
        """The node is this agent's. Raises PublicationError when it is another one's by now."""
        known, followed = self._own_node.stored, self._nodes.items.get(own_key(self._node))
        if known is not None and (followed is None or followed.status.holder != known.holder):
            if self._clock() - self._told_at < _LAG_S:
                return
            known = None
        if known is None and await self._own_node.look() is None:
            self._owner = None  # it may have gone with its Node
        await self._check(self._own_node.content)

    async def _check(self, status: NodeStatus | None) -> None:
        if (why := await self._refusal(status)) is not None:
            raise PublicationError(why)

    async def _is_other_s(self, status: NodeStatus | None) -> bool:
        """What is published is another agent's, though its node may be this one's by now."""
        holder = status.holder if status is not None else None
        if holder is None or holder == self._holder.spec:
            return False
        return holder.boot == self._holder.boot or await self._refusal(status) is not None

    async def _refusal(self, status: NodeStatus | None) -> str | None:
        if status is None or status.holder is None or status.holder == self._holder.spec:
            return None
        node = await self._kubernetes_node()
        boot = node.boot if node is not None else ""
        seconds = seconds_since(status.renew_time, self._now())
        left = status.holder.boot == self._holder.boot and _is_left(status.holder.run_directory)
        return refusal(self._node, self._holder, status.holder, seconds, boot, left=left)

    async def _known_objects(self) -> dict[int, Owned[EndpointsSpec]]:
        """This node's. The first time, as they are followed."""
        if self._objects is None:
            try:
                async with asyncio.timeout(_LISTED_S):
                    await self._endpoints.synced.wait()
            except TimeoutError:
                why = self._endpoints.problem or "the API server has not told yet what there is"
                raise SourceAwayError(f"cannot publish the enrolled workloads: {why}") from None
            objects: dict[int, Owned[EndpointsSpec]] = {}
            for number in self._numbers():
                await self._object(objects, number).look()
            self._objects = objects
        return self._objects

    def _numbers(self) -> list[int]:
        # Of those of all nodes, which are many, few get past the first question.
        begin = f"{self._node}-"
        followed: tuple[Iterable[Key], ...] = self._endpoints.items, self._endpoints.unread
        mine = {name for names in followed for _, name in names if name.startswith(begin)}
        return [number for name in sorted(mine) if (number := number_of(name, self._node)) is not None]

    def _object(self, objects: dict[int, Owned[EndpointsSpec]], number: int) -> Owned[EndpointsSpec]:
        if number not in objects:
            objects[number] = Owned(self._api, _ENDPOINTS, object_name(self._node, number))
        return objects[number]

    async def _doubt(self, objects: dict[int, Owned[EndpointsSpec]]) -> None:
        """Looks at what is followed otherwise than it was written here."""
        seen = {number: self._endpoints.items.get(own_key(object_name(self._node, number))) for number in objects}
        for number in self._numbers():
            seen.setdefault(number, self._endpoints.items.get(own_key(object_name(self._node, number))))
        for number, item in seen.items():
            known = objects[number].stored if number in objects else None
            if _content(item) == known or self._wrote_lately(number):
                continue
            if await self._object(objects, number).look() is None:
                self._owner = None  # it may have gone with its Node

    def _wrote_lately(self, number: int) -> bool:
        return self._clock() - self._written.get(number, float("-inf")) < _LAG_S


def _is_left(run_directory_: str) -> bool:
    """Something of an agent is in it."""
    with contextlib.suppress(OSError, ValueError):  # whatever somebody has written there
        return run_directory.has_node(Path(run_directory_))
    return False


def _content(item: MeshEndpoints | None) -> EndpointsSpec | None:
    if item is None:
        return None
    with contextlib.suppress(ObjectError):
        return item.looked_into()
    return None


def _states(status: NodeStatus) -> list[tuple[str, str]]:
    return [(one.type, one.status) for one in status.conditions]


def _without_time(status: NodeStatus) -> tuple[object, ...]:
    return status.agent_version, status.holder, status.enrolled, status.wanted, status.problems, status.trust
