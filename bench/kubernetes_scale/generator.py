"""Everybody else in the cluster: kubelets, the controllers, and the agents of the nodes that are not there.

A process of its own, beside the API server: `python -m bench.kubernetes_scale.generator ORDER`, where ORDER is JSON
(see Order). It fills the API server, then reads a line for each thing to do, and answers each with a line of JSON:

    churn SECONDS       pods come and go; {"changes", "behind_s", "bytes", "events"}

How a pod comes: its object, bound; its status with an address, and its endpoint, not ready; its agent publishes it (as
at CNI ADD); its status, ready, and its endpoint, ready. How it goes: its endpoint ends; its agent withdraws it; the
endpoint goes; the object goes. A service's slice is written for each of these, though the real controller gathers what
comes within its backoff: that is the most that a watch can get.

The pods that are there from the beginning are put into etcd itself: nobody but the API server reads them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from bench.kubernetes_scale import shapes
from bench.kubernetes_scale.meter import OF_KUBE_PROXY, Meter, of_agent
from bench.kubernetes_scale.population import Population, SimulatedNode, SimulatedPod, SimulatedService
from bench.kubernetes_scale.sizes import Sizes
from nodeseal.clock import utc_now
from nodeseal.kubernetes.access import Access
from nodeseal.kubernetes.api import Api, RefusedError
from nodeseal.kubernetes.objects import ENDPOINT_SLICES, NODES, PODS, SERVICES, KubernetesObject, Resource
from nodeseal.mesh.address import parse_address
from nodeseal.mesh.trust import Trust
from nodeseal.sources.kubernetes import shards
from nodeseal.sources.kubernetes.holder import Holder
from nodeseal.sources.kubernetes.mesh_objects import (
    MESH_ENDPOINTS,
    MESH_NODES,
    EndpointsSpec,
    NodeStatus,
    Owner,
    object_name,
)
from nodeseal.sources.kubernetes.node_status import Pace, node_status
from nodeseal.sources.kubernetes.owned import Owned, OwnKind
from nodeseal.sources.source import NodeReport

T = TypeVar("T")

ACCOUNTS = Resource("", "v1", "serviceaccounts", KubernetesObject)
ENDPOINTS_KIND = OwnKind(MESH_ENDPOINTS, "MeshEndpoints", "spec", EndpointsSpec)
NODE_KIND = OwnKind(MESH_NODES, "MeshNode", "status", NodeStatus)

_AT_ONCE = 24
_IN_ETCD_AT_ONCE = 100
_ENDS_S = 1.0
"""From the end of an endpoint to its going."""
_STARTS_S = 1.0
"""From a pod's address to its being ready."""


class Order(msgspec.Struct):
    """`watched`: the node whose agent's watches are measured. `etcd`: its URL. `digest`: of the cluster's root."""

    server: str
    ca: str
    token: str
    etcd: str
    watched: str
    digest: str
    version: str
    sizes: Sizes


@dataclass(eq=False)
class _Agent:
    """Of a node that is not there: what it has written, as a real one knows it."""

    node: SimulatedNode
    owner: Owner
    holder: Holder
    pace: Pace
    status: Owned[NodeStatus]
    objects: dict[int, Owned[EndpointsSpec]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Generator:
    """`fill`, then `churn`."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._access = Access(order.server, Path(order.ca), Path(order.token))
        self._api = Api(self._access, "nodeseal-bench")
        self._population = Population(order.sizes)
        self._agents: dict[str, _Agent] = {}
        self._slices: dict[tuple[str, str], asyncio.Lock] = {}
        self._changes = 0
        self._behind = 0.0
        self._failed: dict[str, int] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def fill(self) -> dict[str, Any]:
        """Everything that is there from the beginning. {"plain": addresses that can be dialled in plaintext}"""
        people = self._population
        began = time.monotonic()
        await self._put_pods()
        say(f"  pods: {time.monotonic() - began:.0f} s")
        await _each(people.nodes, self._put_node)
        say(f"  nodes: {time.monotonic() - began:.0f} s")
        await _each(people.services, self._put_service)
        say(f"  services: {time.monotonic() - began:.0f} s")
        await _each(self._agents.values(), self._publish_all)
        say(f"  mesh objects: {time.monotonic() - began:.0f} s")
        self._renewing = asyncio.create_task(self._renew())
        services = [f"{one.address}:80" for one in people.services if one.plain]
        pods = [f"{pod.address}:8080" for pod in people.pods if pod.service.plain]
        return {"seconds": time.monotonic() - began, "plain": services + pods}

    async def churn(self, seconds: float) -> dict[str, Any]:
        """Pods come and go, and nodes renew. What of the watches was measured meanwhile."""
        meter = Meter(self._access, [*of_agent(self._order.watched), *OF_KUBE_PROXY])
        await meter.start()
        self._changes, self._behind, self._failed = 0, 0.0, {}
        under_way: set[asyncio.Task[None]] = set()
        began, every = time.monotonic(), 2 / self._order.sizes.rate
        due = began
        while (now := time.monotonic()) < began + seconds:
            self._behind = max(self._behind, now - due)
            going = self._population.pick()
            going.state = "ending"
            for story in (self._goes(going), self._comes(going.service)):
                task = asyncio.create_task(self._bear(story))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            due += every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        lasted = time.monotonic() - began
        changes, metered = self._changes, meter.read()
        if under_way:
            await asyncio.wait(under_way, timeout=60)
        await meter.stop()
        return {
            "seconds": lasted,
            "changes": changes,
            "behind_s": self._behind,
            "failed": self._failed,
            **metered,
        }

    async def close(self) -> None:
        """Nothing is written any more."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self._api.close()

    async def _bear(self, story: Awaitable[None]) -> None:
        try:
            await story
        except Exception as error:  # one of thousands: counted and told
            name = f"{type(error).__name__}: {error}"[:60]
            self._failed[name] = self._failed.get(name, 0) + 1

    # ---- what is there

    async def _put_pods(self) -> None:
        people = list(self._population.pods)
        async with aiohttp.ClientSession(self._order.etcd) as etcd:

            async def put(some: list[SimulatedPod]) -> None:
                operations = [{"requestPut": _stored(pod)} for pod in some]
                async with etcd.post("/v3/kv/txn", json={"success": operations}) as answer:
                    answer.raise_for_status()

            groups = [people[at : at + _IN_ETCD_AT_ONCE] for at in range(0, len(people), _IN_ETCD_AT_ONCE)]
            await _each(groups, put, most=4)

    async def _put_node(self, node: SimulatedNode) -> None:
        body = shapes.node(node.name, node.number, node.address)
        made = await self._api.create(NODES, "", body)
        uid = json.loads(made)["metadata"]["uid"]
        status = {"status": body["status"]}
        await self._api.merge(NODES, ("", node.name), status, part="/status")
        self._agents[node.name] = _Agent(
            node,
            Owner("v1", "Node", node.name, uid),
            Holder(str(uuid.uuid4()), Path("/run/nodeseal")),
            Pace(time.monotonic(), random.random()),  # noqa: S311
            Owned(self._api, NODE_KIND, node.name),
        )

    async def _put_service(self, service: SimulatedService) -> None:
        account = {"metadata": {"name": service.name}}
        await self._api.create(ACCOUNTS, service.namespace, account)
        made = json.loads(
            await self._api.create(SERVICES, service.namespace, shapes.service(service.namespace, service.name))
        )
        service.uid, service.address = made["metadata"]["uid"], made["spec"]["clusterIP"]
        for number in service.slices:
            await self._api.create(ENDPOINT_SLICES, service.namespace, _slice(service, number))

    async def _publish_all(self, agent: _Agent) -> None:
        await self._publish(agent)
        await self._tell(agent)

    # ---- what agents do

    async def _publish(self, agent: _Agent) -> None:
        """As nodeseal.sources.kubernetes.publisher does it."""
        async with agent.lock:
            present = {
                number: tuple(one.content.workloads) for number, one in agent.objects.items() if one.content is not None
            }
            for number, contents in shards.steps(present, agent.node.enrolled):
                if contents:
                    if number not in agent.objects:
                        name = object_name(agent.node.name, number)
                        agent.objects[number] = Owned(self._api, ENDPOINTS_KIND, name)
                    await agent.objects[number].put(EndpointsSpec(agent.node.name, list(contents)), agent.owner)
                else:
                    await agent.objects.pop(number).remove()

    async def _tell(self, agent: _Agent) -> None:
        await agent.status.put(self._status(agent), agent.owner)
        agent.pace.wrote(time.monotonic(), random.random())  # noqa: S311

    def _status(self, agent: _Agent) -> NodeStatus:
        enrolled = agent.node.enrolled_count
        trust = Trust(frozenset([self._order.digest]), self._order.digest, ())
        address = (parse_address(agent.node.address),)
        report = NodeReport(enrolled, enrolled)
        return node_status(self._order.version, agent.holder, trust, report, agent.status.content, utc_now(), address)

    async def _renew(self) -> None:
        """Looks at every node every second, as its agent does."""
        while True:
            began = time.monotonic()
            due = [one for one in self._agents.values() if self._is_due(one)]
            await _each(due, lambda one: self._bear(self._tell(one)))
            await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))

    def _is_due(self, agent: _Agent) -> bool:
        told = agent.status.content
        other = told is None or told.enrolled != agent.node.enrolled_count
        return agent.pace.due(time.monotonic(), worse=False, other=other) <= 0

    # ---- what pods do

    async def _comes(self, service: SimulatedService) -> None:
        pod = self._population.add(service, "starting")
        node, key = pod.node, (service.namespace, pod.name)
        made = await self._api.create(
            PODS, service.namespace, shapes.pod(service.namespace, pod.name, service.name, node.name)
        )
        pod.uid = json.loads(made)["metadata"]["uid"]
        status = shapes.pod_status(pod.address, node.address, ready=False)
        await self._api.merge(PODS, key, {"status": status}, part="/status")
        if not service.plain:
            await self._publish(self._agents[node.name])
        await self._put_slice(service, pod.slice_number)
        await asyncio.sleep(_STARTS_S)
        pod.state = "ready"
        status = shapes.pod_status(pod.address, node.address, ready=True)
        await self._api.merge(PODS, key, {"status": status}, part="/status")
        await self._put_slice(service, pod.slice_number)
        self._changes += 1

    async def _goes(self, pod: SimulatedPod) -> None:
        service, node = pod.service, pod.node
        await self._put_slice(service, pod.slice_number)
        await asyncio.sleep(_ENDS_S)
        if not service.plain:
            await self._publish(self._agents[node.name])
        node.pods.remove(pod)
        await self._put_slice(service, service.take(pod))
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        await self._api._object("delete", PODS, PODS.at((service.namespace, pod.name)), body)
        self._changes += 1

    async def _put_slice(self, service: SimulatedService, number: int) -> None:
        key = service.namespace, f"{service.name}-{number:05x}"
        async with self._slices.setdefault(key, asyncio.Lock()):
            body = _slice(service, number)
            try:
                await self._api.replace(ENDPOINT_SLICES, key, body)
            except RefusedError as error:
                if not error.missing:
                    raise
                await self._api.create(ENDPOINT_SLICES, service.namespace, body)


def _slice(service: SimulatedService, number: int) -> shapes.Object:
    endpoints = [
        shapes.endpoint(service.namespace, pod.name, pod.uid, pod.address, pod.node.name, pod.node.zone, pod.state)
        for pod in service.slices[number]
    ]
    name = f"{service.name}-{number:05x}"
    return shapes.endpoint_slice(service.namespace, service.name, service.uid, name, endpoints)


def _stored(pod: SimulatedPod) -> dict[str, str]:
    service, node = pod.service, pod.node
    body = shapes.stored_pod(service.namespace, pod.name, service.name, node.name, pod.address, node.address, pod.uid)
    key = f"/registry/pods/{service.namespace}/{pod.name}"
    return {"key": _base64(key.encode()), "value": _base64(json.dumps(body).encode())}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def _each(items: Iterable[T], action: Callable[[T], Awaitable[None]], most: int = _AT_ONCE) -> None:
    """Calls it for all of them, so many at once. Raises the first error."""
    rest = iter(list(items))

    async def work() -> None:
        for item in rest:
            await action(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(most):
            group.create_task(work())


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


async def serve(order: Order) -> None:
    """Until the input ends."""
    loop = asyncio.get_running_loop()
    generator = Generator(order)
    try:
        print(json.dumps(await generator.fill()), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            _, _, seconds = line.strip().partition(" ")
            print(json.dumps(await generator.churn(float(seconds))), flush=True)
    finally:
        await generator.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Order)))
