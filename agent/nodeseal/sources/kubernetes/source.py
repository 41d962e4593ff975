"""The mesh state from Kubernetes: its pods, services and nodes, and what nodeseal's own objects say.

docs/kubernetes.md says what is read and what counts. The agent goes on while the API server is away, with what was
known (cluster.py has it on the disk too), and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from nodeseal import __version__
from nodeseal.kubernetes.access import Access, AccessError
from nodeseal.kubernetes.api import Api
from nodeseal.local.mesh_source import KubernetesMesh, Outside
from nodeseal.mesh.model import Mesh, Workload, WorkloadName
from nodeseal.mesh.trust import Trust
from nodeseal.sources.arrival import Arrival, ArrivalError
from nodeseal.sources.heap import Heap
from nodeseal.sources.kubernetes.following import Following, Settings
from nodeseal.sources.kubernetes.requirements import missing
from nodeseal.sources.source import (
    Claim,
    ClaimError,
    Description,
    MeshStateError,
    NodeReport,
    PublicationError,
    Publishers,
    Reference,
    Source,
    StateProblem,
)

_LOAD_S = 15.0
_LOOK_S = 0.2
_SHARE = 10
"""Of the time, one part goes into taking new states in at most."""
_LONGEST_PAUSE_S = 1.0
_SETTLE_S = 60.0
"""How often what was needed for a moment goes back to the system."""


class KubernetesSource(Source):
    """The mesh state of a cluster, followed for one node of it."""

    takes_reports = True

    def __init__(self, mesh: KubernetesMesh, node: str, run_dir: Path, cgroup: Path | None = None) -> None:
        """`run_dir`: where what is known is saved. `cgroup`: the root of the v2 tree; None: it is found."""
        self.node = node
        self._mesh = mesh
        self._settings = Settings(mesh.trust_domain, mesh.namespace, node, run_dir, cgroup)
        self._following: Following | None = None
        self._running: asyncio.Task[None] | None = None
        self._users = 0
        self._heap = Heap()
        self._settled = float("-inf")

    @property
    def publishers(self) -> Publishers:  # type: ignore[override]
        """See Source.publishers."""
        return self._following.publishers if self._following is not None else {}

    def describe(self) -> Description:
        """See Source.describe."""
        where = self._mesh.outside.server if self._mesh.outside is not None else "its cluster"
        return Description(
            f"the Kubernetes API server of {where}",
            f"{where}'s MeshEndpoints",
            "see why nodeseal's DaemonSet does not run it",
        )

    def verify(self) -> Iterator[str]:
        """See Source.verify. Whether the API server can be asked; what it says is no reason not to start."""
        try:
            self._access()
        except AccessError as error:
            yield str(error)

    async def examine(self) -> Sequence[str]:
        """See Source.examine."""
        try:
            api = self._new_api()
        except AccessError as error:
            return [str(error)]
        try:
            return [line async for line in missing(api, self._mesh.namespace)]
        finally:
            await api.close()

    async def load(self) -> Mesh:
        """See Source.load. What `changes` gives next goes on from it."""
        async with self._usable() as following:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOAD_S):
                    while not following.is_known and not following.cluster.troubled:
                        await following.news(_LOOK_S)
            if following.cluster.known:
                return (await following.take())[0]
            raise MeshStateError(following.cluster.lacking())

    async def changes(self) -> AsyncIterator[Mesh | MeshStateError]:
        """See Source.changes."""
        clock = asyncio.get_running_loop().time
        async with self._usable() as following:
            told: Mesh | None = None
            complained: Sequence[StateProblem] = ()
            while True:
                if told is None and not following.is_known:
                    lacking = list(following.cluster.lacking())
                    if following.cluster.troubled and lacking and lacking != complained:
                        complained = lacking
                        yield MeshStateError(lacking)
                    await following.news(_LOOK_S)
                    continue
                mesh, problems = await following.take()
                since = clock()
                news = mesh is not told or (complained and not problems)
                if news:
                    told = mesh
                    yield mesh
                if problems and (news or problems != complained):
                    yield MeshStateError(problems)
                complained = problems
                if clock() - self._settled >= _SETTLE_S:
                    self._heap.settle(len(mesh.workloads))
                    self._settled = clock()
                # Whoever takes a new state has work with it: no more than a share of the time goes into that.
                await following.pause((clock() - since) * _SHARE, _LONGEST_PAUSE_S)
                await following.news()

    async def claim(self) -> KubernetesClaim:
        """See Source.claim. The cluster is followed from now on."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                following = await stack.enter_async_context(self._followed())
            except (AccessError, OSError) as error:
                raise ClaimError(str(error)) from None
            held = await following.publisher.claim()
            serving = asyncio.create_task(following.serve(), name="kubernetes, writing")
            stack.push_async_callback(_end_serving, following, serving)
            return KubernetesClaim(held, stack.pop_all())

    async def publish(self, workloads: Iterable[Workload], trust: Trust | None = None) -> bool:
        """See Source.publish."""
        async with self._publishing() as following:
            return await following.publisher.publish(workloads, trust)

    async def withdraw(self) -> str | None:
        """See Source.withdraw. Nothing is followed for it."""
        following = self._following
        if following is not None:
            return await following.publisher.withdraw()
        try:
            following = Following(self._new_api(), self._settings)
        except (AccessError, OSError) as error:
            raise PublicationError(str(error)) from None
        try:
            return await following.publisher.withdraw()
        finally:
            await following.close()

    def report(self, report: NodeReport) -> None:
        """See Source.report."""
        if self._following is not None:
            self._following.publisher.report(report)

    async def expect(self, arrival: Arrival, present: Mesh | None) -> WorkloadName | None:
        """See Source.expect."""
        del present
        following = self._following
        if following is None:
            raise ArrivalError("the agent does not follow the API server yet")
        return await following.expect(arrival)

    def enrolled_namespaces(self) -> frozenset[str] | None:
        """See Source.enrolled_namespaces."""
        following = self._following
        return following.pods.enrolled_namespaces() if following is not None and following.is_known else None

    async def depart(self, arrival: Arrival) -> None:
        """See Source.depart."""
        if self._following is not None:
            self._following.depart(arrival)

    def reference(self) -> Reference:
        """See Source.reference."""
        mesh, outside = self._mesh, self._mesh.outside
        found = {"kubernetes": mesh.trust_domain, "namespace": mesh.namespace, "node": self.node}
        if outside is not None:
            found |= {"server": outside.server, "ca": str(outside.ca), "token": str(outside.token)}
        return found

    @classmethod
    def at(cls, reference: Reference, run_dir: Path) -> Self:
        """The one that gave this reference. Raises ValueError when no such source did."""
        inside = {"kubernetes", "namespace", "node"}
        if reference.keys() not in (inside, inside | {"server", "ca", "token"}):
            raise ValueError(f"no source of the mesh state is known by {dict(reference)}")
        outside = None
        if "server" in reference:
            outside = Outside(reference["server"], Path(reference["ca"]), Path(reference["token"]))
        mesh = KubernetesMesh(reference["kubernetes"], reference["namespace"], outside)
        return cls(mesh, reference["node"], run_dir)

    @contextlib.asynccontextmanager
    async def _publishing(self) -> AsyncIterator[Following]:
        """The same for who writes. Raises PublicationError."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                following = await stack.enter_async_context(self._followed())
            except (AccessError, OSError) as error:
                raise PublicationError(str(error)) from None
            yield following

    @contextlib.asynccontextmanager
    async def _usable(self) -> AsyncIterator[Following]:
        """The same for who reads the state. Raises MeshStateError."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                following = await stack.enter_async_context(self._followed())
            except (AccessError, OSError) as error:
                raise MeshStateError([StateProblem(str(error))]) from None
            yield following

    @contextlib.asynccontextmanager
    async def _followed(self) -> AsyncIterator[Following]:
        """What follows the cluster, which it does as long as anybody is in here. Raises AccessError, OSError."""
        following = self._following or self._make()
        self._users += 1
        if self._running is None:
            self._running = asyncio.create_task(_run(following), name="kubernetes")
        try:
            yield following
        finally:
            self._users -= 1
            if not self._users:
                running, self._running = self._running, None
                running.cancel()
                await asyncio.wait([running])
                await following.close()

    def _make(self) -> Following:
        self._following = Following(self._new_api(), self._settings)
        return self._following

    def _new_api(self) -> Api:
        """Raises AccessError."""
        return Api(self._access(), f"nodeseal-agent/{__version__} {self.node}")

    def _access(self) -> Access:
        """Raises AccessError."""
        outside = self._mesh.outside
        if outside is None:
            return Access.in_cluster(os.environ)
        access = Access(outside.server, outside.ca, outside.token)
        access.bearer()
        return access


class KubernetesClaim:
    """The right to publish. The cluster is followed as long as it is held."""

    def __init__(self, held: Claim, following: contextlib.AsyncExitStack) -> None:
        self._held = held
        self._following = following

    async def release(self, *, undo: bool = False) -> None:
        """See Claim.release."""
        await self._held.release(undo=undo)
        await self._following.aclose()


async def _end_serving(following: Following, serving: asyncio.Task[None]) -> None:
    serving.cancel()
    await asyncio.wait([serving])
    # The next agent may find the API server away.
    await following.cluster.save()


async def _run(following: Following) -> None:
    await following.restore()
    await following.run()
