"""What an agent needs of the API server: rights, and nodeseal's own kinds. `nodeseal check` tells what is missing.

The server is asked what the agent's token may do (SelfSubjectAccessReview), so nothing is changed.
https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-access-review-v1/
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
from msgspec import Struct

from nodeseal.kubernetes.access import AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.objects import (
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    KubernetesObject,
    Resource,
)
from nodeseal.sources.kubernetes import documents
from nodeseal.sources.kubernetes.mesh_objects import MESH_ENDPOINTS, MESH_NODES
from nodeseal.sources.kubernetes.network_policies import NETWORK_POLICIES
from nodeseal.sources.kubernetes.pod_events import EVENTS

_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", KubernetesObject)
_READ, _WRITE = ("list", "watch"), ("get", "create", "update", "delete")


class _Status(Struct):
    allowed: bool = False


class _Review(Struct):
    status: _Status


async def missing(api: Api, namespace: str) -> AsyncIterator[str]:
    """One line each. `namespace`: nodeseal's own. Never raises."""
    try:
        async for line in _missing(api, namespace):
            yield line
    except (AwayError, RefusedError, AccessError, ValueError) as error:
        yield f"the API server cannot be asked what the agent may do: {error}"


async def _missing(api: Api, namespace: str) -> AsyncIterator[str]:
    """Raises AwayError, RefusedError, AccessError, ValueError."""
    rights: tuple[tuple[Resource[Any], Iterable[str], str, str], ...] = (
        *((one, _READ, "", "") for one in (NAMESPACES, PODS, NETWORK_POLICIES, SERVICES, ENDPOINT_SLICES)),
        (NODES, ("get", *_READ), "", ""),
        (documents.CONFIG_MAPS, _READ, namespace, documents.NAME),
        (MESH_ENDPOINTS, (*_READ, *_WRITE), "", ""),
        (MESH_NODES, (*_READ, *_WRITE), "", ""),
        (EVENTS, ("create",), "", ""),
    )
    for resource, verbs, inside, name in rights:
        lacking = [verb for verb in verbs if not await _allowed(api, resource, verb, inside, name)]
        if lacking:
            where = f" {name} of the namespace {inside}" if inside else ""
            text = ", ".join(lacking)
            yield f"the agent may not {text} {resource.name}{where}: give its service account the verbs {text} on them"
    kinds: tuple[Resource[Any], ...] = (MESH_ENDPOINTS, MESH_NODES)
    for own in kinds:
        try:
            await api.get(own, ("", "nodeseal-asks-for-none"))
        except RefusedError as error:
            if error.code != 403:
                yield str(error)


async def _allowed(api: Api, resource: Resource[Any], verb: str, namespace: str, name: str) -> bool:
    wanted = {"verb": verb, "group": resource.group, "resource": resource.plural, "namespace": namespace, "name": name}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: text for key, text in wanted.items() if text}},
    }
    return msgspec.json.decode(await api.create(_REVIEWS, "", body), type=_Review).status.allowed
