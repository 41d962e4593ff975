"""Who is in the cluster: nodes, services, and the pods that each of them has. Pure."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address

from bench.kubernetes_scale.shapes import ZONES, shares
from bench.kubernetes_scale.sizes import Sizes
from nodeseal.mesh.workload import Mode, Phase, Workload, WorkloadName
from nodeseal.sources.kubernetes.mesh_objects import PublishedWorkload, write_workload

MOST_ENDPOINTS = 100
"""In an EndpointSlice (kube-controller-manager --max-endpoints-per-slice)."""
REAL_NODES = 2
"""Which are not made here."""
PLAIN, MESH = "plain", "team"
"""How namespaces begin, whose pods nobody has enrolled, or whose are."""
RANGE = "10.100.0.0/14"
_FIRST = int(IPv4Address("10.100.0.1"))
_TEAMS = 40


@dataclass(eq=False)
class SimulatedPod:
    """`state`: of its endpoint, see nodeseal's shapes."""

    name: str
    uid: str
    address: str
    service: SimulatedService
    node: SimulatedNode
    state: str = "ready"
    slice_number: int = 0

    @property
    def is_enrolled(self) -> bool:
        """It is in the mesh."""
        return not self.service.plain and self.state != "ending"

    @cached_property
    def published(self) -> PublishedWorkload:
        """As its node's agent publishes it."""
        key = WorkloadName(self.service.namespace, self.name)
        address = (IPv4Address(self.address),)
        account = self.service.name
        return write_workload(
            Workload(key, account, self.node.name, address, None, True, Mode.PERMISSIVE, Phase.ENROLLED)
        )


@dataclass(eq=False)
class SimulatedService:
    """`slices`: by their number, what is in each."""

    namespace: str
    name: str
    plain: bool
    uid: str = ""
    address: str = ""
    slices: dict[int, list[SimulatedPod]] = field(default_factory=dict)

    def put(self, pod: SimulatedPod) -> int:
        """Into the fullest slice that has room, as the controller does it; which one."""
        open_ = [number for number, pods in self.slices.items() if len(pods) < MOST_ENDPOINTS]
        number = max(open_, key=lambda one: len(self.slices[one]), default=max(self.slices, default=-1) + 1)
        self.slices.setdefault(number, []).append(pod)
        pod.slice_number = number
        return number

    def take(self, pod: SimulatedPod) -> int:
        """Which one it was in."""
        self.slices[pod.slice_number].remove(pod)
        return pod.slice_number


@dataclass(eq=False)
class SimulatedNode:
    """One of those whose agents are not there."""

    name: str
    number: int
    address: str
    pods: list[SimulatedPod] = field(default_factory=list)

    @property
    def zone(self) -> str:
        return ZONES[self.number % len(ZONES)]

    @property
    def enrolled(self) -> dict[WorkloadName, PublishedWorkload]:
        """What its agent publishes."""
        return {(one := pod.published).key: one for pod in self.pods if pod.is_enrolled}

    @property
    def enrolled_count(self) -> int:
        """How many these are."""
        return sum(pod.is_enrolled for pod in self.pods)


class Population:
    """All of it."""

    def __init__(self, sizes: Sizes) -> None:
        self._random = random.Random(13)  # noqa: S311
        self._fresh = iter(range(1 << 18))
        self.nodes = [
            SimulatedNode(
                f"ip-10-20-{number // 250}-{number % 250}.eu-central-1.compute.internal",
                number,
                f"10.20.{number // 250}.{number % 250 + 1}",
            )
            for number in range(sizes.nodes - REAL_NODES)
        ]
        plain = round(sizes.services * sizes.plain)
        every = sizes.services // plain if plain else sizes.services + 1
        self.services = []
        for number in range(sizes.services):
            is_plain = number % every == every - 1
            namespace = f"{PLAIN if is_plain else MESH}-{number % _TEAMS:02d}-production"
            self.services.append(SimulatedService(namespace, f"backend-service-{number:04d}", is_plain))
        for service, count in zip(self.services, shares(sizes.pods, sizes.services), strict=True):
            for _ in range(count):
                self.add(service)

    @property
    def namespaces(self) -> set[str]:
        return {one.namespace for one in self.services}

    @property
    def pods(self) -> Iterator[SimulatedPod]:
        return (pod for node in self.nodes for pod in node.pods)

    def add(self, service: SimulatedService, state: str = "ready") -> SimulatedPod:
        """One more pod, on some node that has few."""
        node = min(self._random.sample(self.nodes, min(3, len(self.nodes))), key=lambda one: len(one.pods))
        number = next(self._fresh)
        suffix = "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        pod = SimulatedPod(
            f"{service.name}-6d5f9c7b8d-{suffix}{number % 100:02d}",
            str(uuid.uuid4()),
            str(IPv4Address(_FIRST + number)),
            service,
            node,
            state,
        )
        node.pods.append(pod)
        service.put(pod)
        return pod

    def pick(self) -> SimulatedPod:
        """Any that is ready."""
        while True:
            node = self._random.choice(self.nodes)
            ready = [pod for pod in node.pods if pod.state == "ready"]
            if ready:
                return self._random.choice(ready)
