"""From the objects of the cluster to the model: what has changed is gathered, and put in together.

How it works. Each kind of objects tells which of its objects have changed, whenever something comes; that is only noted
(`wake`). `take` then decides anew what the noted objects are in the model. It comes soon after the first note, so that
what changes at once is one change, and costs the time for what has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nodeseal import __version__
from nodeseal.backoff import Backoff
from nodeseal.kubernetes.api import Api
from nodeseal.kubernetes.objects import ENDPOINT_SLICES, NAMESPACES, NODES, PODS, SERVICES, Key
from nodeseal.mesh import node, service
from nodeseal.mesh.address import Address
from nodeseal.mesh.model import Mesh, WorkloadName
from nodeseal.sources.arrival import Arrival
from nodeseal.sources.kubernetes import documents, saved
from nodeseal.sources.kubernetes.assembly import Assembly
from nodeseal.sources.kubernetes.cluster import Cluster
from nodeseal.sources.kubernetes.documents import CONFIG_MAPS, ConfigMap, Documents
from nodeseal.sources.kubernetes.holder import Holder
from nodeseal.sources.kubernetes.mesh_objects import MESH_ENDPOINTS, MESH_NODES, MeshNode, ObjectError, read_node
from nodeseal.sources.kubernetes.network_policies import NETWORK_POLICIES
from nodeseal.sources.kubernetes.own_pods import CHECK_S, Held, OwnPods
from nodeseal.sources.kubernetes.places import Places
from nodeseal.sources.kubernetes.pod_events import PodEvents
from nodeseal.sources.kubernetes.pods import uid_on_node
from nodeseal.sources.kubernetes.publications import Publications
from nodeseal.sources.kubernetes.publisher import Publisher
from nodeseal.sources.kubernetes.renewals import Renewals
from nodeseal.sources.kubernetes.service_table import ServiceTable
from nodeseal.sources.kubernetes.services import here_of, node_of
from nodeseal.sources.source import Concern, Publishers, StateProblem

log = logging.getLogger("nodeseal.agent")

_KNOWN_LOOK_S = 0.05
GATHER_S = 0.02
"""What comes within it is one change."""
_FRESH_S = 5.0
"""So long what is saved does not count, though the API server has not said anything."""
_ENDPOINTS_AT_ONCE = 100
"""MeshEndpoints that are read without a pause: some milliseconds."""
_SERVICES_AT_ONCE = 20
"""That are decided without a pause: some milliseconds, if they have hundreds of endpoints each."""
_AGAIN_S, _SELDOM_S = 1.0, 60.0
"""What has failed begins again after so long."""
_HELD, _GOOD = "held", "documents"
"""Names of what is saved beside the objects: what pods and the ConfigMap said when it was right."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`directory`: where the copy of what is known is. `root`: of the cgroup v2 tree, None: it is found."""

    trust_domain: str
    namespace: str
    node: str
    directory: Path
    root: Path | None = None


class Following:
    """The cluster as one node sees it. All methods belong to the event loop."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._restored = False
        self._woken = asyncio.Event()
        self._urgent = asyncio.Event()
        self._pods_told = asyncio.Event()
        self._taking = asyncio.Lock()
        self._since: float | None = None
        self.cluster = Cluster(api, settings.directory, self.wake)
        follow = self.cluster.follow
        namespaces = follow(NAMESPACES, self._namespaces_changed)
        pods = follow(PODS, self._pods_changed, {"fieldSelector": f"spec.nodeName={settings.node}"})
        policies = follow(NETWORK_POLICIES, self._policies_changed)
        # One object of one namespace: the agent needs no right on others.
        maps = replace(CONFIG_MAPS, namespace=settings.namespace)
        self._maps = follow(maps, self._documents_changed, {"fieldSelector": f"metadata.name={documents.NAME}"})
        self.pods = OwnPods(
            settings.node, pods.items, namespaces.items, policies.items, Places(settings.root), settings.namespace
        )
        self._balanced = follow(SERVICES, self._services_changed, goes_on=True)
        self._slices = follow(ENDPOINT_SLICES, self._slices_changed, goes_on=True)
        self._services = ServiceTable(settings.node, self._balanced.items, self._slices.items)
        self._nodes = follow(NODES, self._node_changed, {"fieldSelector": f"metadata.name={settings.node}"})
        self._endpoints = follow(MESH_ENDPOINTS, self._endpoints_changed, goes_on=True)
        self._mesh_nodes = follow(MESH_NODES, self._mesh_nodes_changed, goes_on=True)
        self._publications = Publications(settings.node)
        self._other_endpoints: set[Key] = set()
        self.publisher = Publisher(
            api,
            settings.node,
            Holder.here(settings.directory),
            __version__,
            self._endpoints,
            self._mesh_nodes,
            addresses=self._own_addresses,
        )
        self._renewals = Renewals(
            api, self._publications.published_nodes, lambda: self._mesh_nodes.watching, self._silence_changed
        )
        self.events = PodEvents(api, settings.node)
        self._other_nodes: dict[str, node.Node] = {}
        self._assembly = Assembly(settings.trust_domain, settings.node)
        self._documents = Documents()
        self._documents_are_new = True
        self._good: list[ConfigMap] = []

    def wake(self) -> None:
        """Something has changed."""
        self._woken.set()

    @property
    def is_known(self) -> bool:
        """There is a model to go by: as the API server tells, or, when it does not, as it was saved."""
        if self.cluster.fresh:
            return True
        patient = self._since is None or asyncio.get_running_loop().time() - self._since < _FRESH_S
        return self.cluster.known and (self.cluster.troubled or not patient)

    async def close(self) -> None:
        """What is asked of the API server fails. It may be followed again."""
        self._since = None
        await self._api.close()

    async def restore(self) -> None:
        """Takes what a former agent has saved, unless something is known already."""
        if self._restored:
            return
        self._restored = True
        await self.cluster.restore()
        directory = self._settings.directory
        held = await asyncio.to_thread(saved.load, directory, _HELD, Held)
        self.pods.held = {one.uid: one for one in held.items} if held is not None else {}
        good = await asyncio.to_thread(saved.load, directory, _GOOD, ConfigMap)
        for one in good.items if good is not None else ():
            self._use(documents.read(one, self._settings.trust_domain))
        self.pods.changed(self.pods.pods)
        self._services.slices_changed(self._slices.items)
        self._services.services_changed(self._balanced.items)
        self._node_changed(set())
        self._endpoints_changed(set(self._endpoints.items))
        self._mesh_nodes_changed(set(self._mesh_nodes.items))

    async def run(self) -> None:
        """Follows the cluster. Never ends."""
        self._since = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for one in (self.cluster.run, self._renewals.run, self._check_places):
                group.create_task(_lasting(one))

    async def serve(self) -> None:
        """What the agent does to which the node belongs: it writes, here and there. Never ends."""
        async with asyncio.TaskGroup() as group:
            for one in (self.cluster.keep, self.events.run, self.publisher.run, self._keep_held):
                group.create_task(_lasting(one))

    async def news(self, seconds: float | None = None) -> None:
        """Waits until `take` has something to do, or for so long."""
        look = self.pods.next_look()
        now = asyncio.get_running_loop().time()
        waits = [one for one in (look - now if look is not None else None, seconds) if one is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                await self._woken.wait()
                await asyncio.sleep(GATHER_S)
        self._woken.clear()

    async def pause(self, seconds: float, most: float) -> None:
        """Lets others have the time, unless something is urgent: a pod of this node."""
        self._urgent.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, most)):
                await self._urgent.wait()

    async def take(self) -> tuple[Mesh, list[StateProblem]]:
        """The model with what has come (the same object: nothing has changed in it), and what is wrong."""
        async with self._taking:
            own = await self.pods.refresh()
            for name, workload in own.items():
                self._assembly.put_own(name, workload)
            if own:
                self._published_changed(self._publications.take_own(self._assembly.own))
            await self._take_endpoints()
            await self._take_services()
            self._take_documents()
            await self._assembly.flush()
            problems = list(self.pods.problems())
            self.events.tell(problems)
            found = [
                *self.cluster.problems(),
                *self._publications.problems(),
                *(StateProblem(text, Concern.OBJECT) for _, text in problems),
                *(StateProblem(text, Concern.OBJECT) for text in self._services.problems()),
                *(StateProblem(text, Concern.OBJECT) for text in self._documents.problems),
                *(StateProblem(text, Concern.OBJECT) for text in self._assembly.problems()),
            ]
            return self._assembly.mesh, found

    async def expect(self, arrival: Arrival) -> WorkloadName | None:
        """See Source.expect. Waits until the API server has told of the pod; who asks bounds it."""
        key = (arrival.name.namespace, arrival.name.name)
        while not self.is_known:
            # Pods may be listed before their namespaces, which say what is wanted of them.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pods_told.wait(), _KNOWN_LOOK_S)
        while (
            (pod := self.pods.pods.get(key)) is None
            or arrival.uid not in ("", uid_on_node(pod))
            or not self.pods.is_judged(key)
        ):
            # The kubelet knows it of the same server: it is about to come, and so is its namespace.
            await self._pods_told.wait()
        self.pods.arrived(uid_on_node(pod), arrival.netns, arrival.addresses)
        self._hurry()
        return arrival.name if self.pods.is_wanted(key) else None

    def depart(self, arrival: Arrival) -> None:
        """See Source.depart."""
        pod = self.pods.pods.get((arrival.name.namespace, arrival.name.name))
        uid = arrival.uid or (uid_on_node(pod) if pod is not None else "")
        self.pods.departed(uid, arrival.netns)
        self._hurry()

    def _hurry(self) -> None:
        self._urgent.set()
        self.wake()

    def _pods_changed(self, keys: set[Key]) -> None:
        self.pods.changed(keys)
        self._tell_of_pods()
        self._hurry()

    def _namespaces_changed(self, keys: set[Key]) -> None:
        self.pods.surroundings_changed(name for _, name in keys)
        self._tell_of_pods()

    def _tell_of_pods(self) -> None:
        self._pods_told.set()
        self._pods_told = asyncio.Event()

    def _policies_changed(self, keys: set[Key]) -> None:
        self.pods.surroundings_changed(namespace for namespace, _ in keys)

    def _services_changed(self, keys: set[Key]) -> None:
        self._services.services_changed(keys)

    def _slices_changed(self, keys: set[Key]) -> None:
        self._services.slices_changed(keys)

    def _node_changed(self, _keys: set[Key]) -> None:
        found = self._nodes.items.get(("", self._settings.node))
        if found is not None:
            self._services.moved(here_of(found))
            self._assembly.put(node.NODES, found.metadata.name, node_of(found))

    def _own_addresses(self) -> tuple[Address, ...]:
        found = self._nodes.items.get(("", self._settings.node))
        return node_of(found).addresses if found is not None else ()

    async def _take_endpoints(self) -> None:
        items = self._endpoints.items
        while self._other_endpoints:
            some = [self._other_endpoints.pop() for _ in range(min(_ENDPOINTS_AT_ONCE, len(self._other_endpoints)))]
            self._published_changed(self._publications.take_endpoints({key: items.get(key) for key in some}))
            await asyncio.sleep(0)

    async def _take_services(self) -> None:
        while found := self._services.refresh(_SERVICES_AT_ONCE):
            for name, one in found.items():
                self._assembly.put(service.SERVICES, name, one)
            await asyncio.sleep(0)

    @property
    def publishers(self) -> Publishers:
        """See Source.publishers."""
        return self._publications.publishers

    def _endpoints_changed(self, keys: set[Key]) -> None:
        self._other_endpoints |= keys

    def _mesh_nodes_changed(self, keys: set[Key]) -> None:
        items = self._mesh_nodes.items
        self._publications.take_nodes({key: items.get(key) for key in keys})
        for _, name in keys - {("", self._settings.node)}:
            self._put_node(name, items.get(("", name)))
        self._renewals.seen([name for _, name in keys])

    def _put_node(self, name: str, said: MeshNode | None) -> None:
        """Another one, as its agent says it is. They are written again and again, and say the same nearly always."""
        try:
            found = read_node(said) if said is not None else None
        except ObjectError as error:
            log.warning("%s: nothing is known of its addresses", error)
            found = None
        if self._other_nodes.get(name) == found:
            return
        if found is None:
            del self._other_nodes[name]
        else:
            self._other_nodes[name] = found
        self._assembly.put(node.NODES, name, found)

    async def _silence_changed(self, silent: frozenset[str], expired: frozenset[str]) -> None:
        self._published_changed(self._publications.take_silence(silent, expired))
        self.wake()

    def _published_changed(self, names: Iterable[WorkloadName]) -> None:
        workloads = self._publications.workloads
        for name in names:
            self._assembly.put_published(name, workloads.get(name))

    def _documents_changed(self, _keys: set[Key]) -> None:
        self._documents_are_new = True

    def _take_documents(self) -> None:
        if not self._documents_are_new:
            return
        self._documents_are_new = False
        found = self._maps.items.get((self._settings.namespace, documents.NAME))
        self._documents = documents.read(found, self._settings.trust_domain)
        if self._documents.objects is not None:
            self._good = [found] if found is not None else []
            self._use(self._documents)

    def _use(self, found: Documents) -> None:
        if found.objects is not None:
            for kind in documents.KINDS:
                self._assembly.replace(kind, found.of(kind))

    async def _check_places(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            self.pods.check_places()
            if self.pods.pending:
                self.wake()

    async def _keep_held(self) -> None:
        """What counts although the API server tells something else by now."""
        kept: tuple[object, ...] = ()
        while True:
            await asyncio.sleep(CHECK_S)
            if self.cluster.fresh:
                self.pods.forget_held()
            held, good = list(self.pods.held.values()), self._good
            if (held, good) != kept:
                kept = (held, good)
                with contextlib.suppress(OSError):  # whoever saves the rest tells of it
                    await asyncio.to_thread(saved.save, self._settings.directory, _HELD, held, "")
                    await asyncio.to_thread(saved.save, self._settings.directory, _GOOD, good, "")


async def _lasting(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `work`, again and again if it fails: one part that ends would end the others, and nobody would miss them.
    Others would take a node that does not renew what it publishes for one that is gone."""
    backoff = Backoff(_AGAIN_S, _SELDOM_S)
    while True:
        try:
            return await work()
        except Exception:
            log.exception("%s has failed, and begins again", work.__qualname__)
        await asyncio.sleep(backoff.next())
