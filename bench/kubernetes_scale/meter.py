"""What a watch costs on the wire: watches beside the agent's, with the same questions, whose bytes are counted.

The API server makes an event's bytes once for all that watch it in the same form, so what these get is what each agent
gets. What kube-proxy watches it gets in protobuf (its default), and is measured in that form too.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from nodeseal.kubernetes.access import Access

JSON, PROTOBUF = "application/json", "application/vnd.kubernetes.protobuf;stream=watch"


@dataclass(frozen=True, slots=True)
class Watched:
    """`query`: what selects the objects."""

    title: str
    path: str
    accept: str = JSON
    query: str = ""


def of_agent(node: str) -> list[Watched]:
    """What an agent watches. The ConfigMap is left out: it is one object."""
    return [
        Watched("MeshEndpoints", "/apis/nodeseal.io/v1alpha1/meshendpoints"),
        Watched("MeshNodes", "/apis/nodeseal.io/v1alpha1/meshnodes"),
        Watched("EndpointSlices", "/apis/discovery.k8s.io/v1/endpointslices"),
        Watched("Services", "/api/v1/services"),
        Watched("Namespaces", "/api/v1/namespaces"),
        Watched("NetworkPolicies", "/apis/networking.k8s.io/v1/networkpolicies"),
        Watched("own Pods", "/api/v1/pods", query=f"&fieldSelector=spec.nodeName={node}"),
        Watched("own Node", "/api/v1/nodes", query=f"&fieldSelector=metadata.name={node}"),
    ]


OF_KUBE_PROXY = (
    Watched("EndpointSlices, protobuf", "/apis/discovery.k8s.io/v1/endpointslices", PROTOBUF),
    Watched("Services, protobuf", "/api/v1/services", PROTOBUF),
)


class Meter:
    """Counts from `start` to `stop`. Raises OSError, aiohttp.ClientError for what cannot be watched."""

    def __init__(self, access: Access, watched: Sequence[Watched]) -> None:
        self._access = access
        self._watched = watched
        self.bytes: dict[str, int] = {}
        self.events: dict[str, int] = {}
        """Lines; of protobuf: pieces that came."""
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Returns when all watch."""
        context = ssl.create_default_context(cafile=self._access.ca)
        headers = {"Authorization": f"Bearer {self._access.bearer()}"}
        self._session = aiohttp.ClientSession(
            self._access.server,
            headers=headers,
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        for one in self._watched:
            version = await self._version(one)
            path = f"{one.path}?watch=true&allowWatchBookmarks=true&timeoutSeconds=3600&resourceVersion={version}"
            answer = await self._session.get(path + one.query, headers={"Accept": one.accept})
            answer.raise_for_status()
            self.bytes[one.title] = self.events[one.title] = 0
            self._tasks.append(asyncio.create_task(self._count(one, answer)))

    def read(self) -> dict[str, dict[str, int]]:
        """What was counted up to now."""
        return {"bytes": dict(self.bytes), "events": dict(self.events)}

    async def stop(self) -> None:
        """The watches end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _version(self, one: Watched) -> str:
        assert self._session is not None
        async with self._session.get(f"{one.path}?limit=1{one.query}", headers={"Accept": JSON}) as answer:
            answer.raise_for_status()
            return str((await answer.json())["metadata"]["resourceVersion"])

    async def _count(self, one: Watched, answer: aiohttp.ClientResponse) -> None:
        async for piece in answer.content.iter_any():
            self.bytes[one.title] += len(piece)
            self.events[one.title] += piece.count(b"\n") if one.accept == JSON else 1
