"""What the certificate service follows in its cluster: the pods that are bound to nodes, and what is revoked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from nodeseal.authority.admission import Residents
from nodeseal.authority.bound_pods import BoundPods
from nodeseal.authority.service import Service
from nodeseal.authority.service_config import ClusterConfig
from nodeseal.kubernetes.api import Api
from nodeseal.kubernetes.followed import Followed
from nodeseal.kubernetes.objects import Key
from nodeseal.kubernetes.placed import BOUND, PLACED_PODS, PlacedPod
from nodeseal.mesh.revocation import REVOCATIONS, certificates_of, identities_of, nodes_of
from nodeseal.sources.kubernetes import documents
from nodeseal.sources.kubernetes.documents import CONFIG_MAPS, ConfigMap

log = logging.getLogger("nodeseal.ca")

_LOOK_S = 1.0


class ClusterState:
    """Has the service decide by it. Until both are known nobody gets anything: it is not known who is revoked."""

    def __init__(self, api: Api, pods: BoundPods, service: Service, cluster: ClusterConfig) -> None:
        self._index = pods
        self._service = service
        self._cluster = cluster
        self._pods: Followed[PlacedPod] = Followed(api, PLACED_PODS, self._pods_changed, {"fieldSelector": BOUND})
        self._maps: Followed[ConfigMap] = Followed(
            api,
            replace(CONFIG_MAPS, namespace=cluster.namespace),
            self._maps_changed,
            {"fieldSelector": f"metadata.name={documents.NAME}"},
        )

    async def follow(self) -> None:
        """Never ends."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run())
            group.create_task(self._maps.run())
            for followed in (self._pods, self._maps):
                while not followed.synced.is_set():
                    self._tell()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await followed.synced.wait()
            self._decide()
            log.info("%d pods are bound to nodes", len(self._index))
            while True:
                self._tell()
                await asyncio.sleep(_LOOK_S)

    async def _pods_changed(self, keys: set[Key]) -> None:
        for key in keys:
            self._index.put(key, self._pods.items.get(key))

    async def _maps_changed(self, _keys: set[Key]) -> None:
        if self._pods.synced.is_set() and self._maps.synced.is_set():
            self._decide()

    def _decide(self) -> None:
        """By what is revoked now. Of documents that are wrong, what the last good ones said counts."""
        domain = self._cluster.trust_domain
        found = documents.read(self._maps.items.get((self._cluster.namespace, documents.NAME)), domain)
        if found.objects is None:
            problem = f"{found.problems[0]}; what was revoked before counts"
            if self._service.problems.get("documents") != problem:
                log.warning("%s", problem)
            self._service.problems["documents"] = problem
            if self._service.residents is None:
                return  # nothing was good before: it is not known who is revoked
        else:
            self._service.problems.pop("documents", None)
            revocations = found.of(REVOCATIONS).values()
            self._service.residents = Residents(
                domain, {}, {}, identities_of(revocations), nodes_of(revocations), certificates_of(revocations, domain),
                bound=self._index,
            )  # fmt: skip

    def _tell(self) -> None:
        for name, followed in (("pods", self._pods), ("configmaps", self._maps)):
            if followed.problem is None:
                self._service.problems.pop(name, None)
            else:
                self._service.problems[name] = f"{name} cannot be followed: {followed.problem}"
