"""Events on pods: who looks at a pod with kubectl sees what is wrong with what it says of nodeseal.

An Event is named by the pod and the text, so that each is made once, however often the agent is started, until the API
server forgets it (after an hour by default). They are few, and made slowly: who writes a label that is wrong on a
thousand pods makes no load.

https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b

from nodeseal.clock import utc_now
from nodeseal.kubernetes.access import AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.objects import KubernetesObject, Pod, Resource

log = logging.getLogger("nodeseal.agent")

CONTROLLER = "nodeseal.io/agent"
EVENTS = Resource("events.k8s.io", "v1", "events", KubernetesObject)

_EVERY_S = 1.0
_MOST_WAITING = 200
_MOST_REMEMBERED = 10_000
_NOTE_MAX = 1024
_NAME_MAX = 200


class PodEvents:
    """`tell` and `run` belong to one event loop."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._waiting: asyncio.Queue[tuple[Pod, str]] = asyncio.Queue(_MOST_WAITING)
        self._told: dict[tuple[str, str], None] = {}
        self._refused = ""

    def tell(self, problems: Iterable[tuple[Pod, str]]) -> None:
        """What is wrong with these pods now. What was told is not told again; what finds no room comes next time."""
        for pod, text in problems:
            key = (pod.metadata.uid, text)
            if key in self._told or self._waiting.full():
                continue
            if len(self._told) >= _MOST_REMEMBERED:
                self._told.pop(next(iter(self._told)))
            self._told[key] = None
            self._waiting.put_nowait((pod, text))

    async def run(self) -> None:
        """Makes them, one after the other. Never ends."""
        while True:
            pod, text = await self._waiting.get()
            try:
                await self._api.create(EVENTS, pod.metadata.namespace, event_of(pod, text, self._node, utc_now()))
            except RefusedError as error:
                if not error.exists and str(error) != self._refused:
                    self._refused = str(error)
                    log.warning("no Event can be made on pods: %s", error)
            except (AwayError, AccessError):
                self._told.pop((pod.metadata.uid, text), None)
            await asyncio.sleep(_EVERY_S)


def event_of(pod: Pod, text: str, node: str, now: datetime) -> dict[str, object]:
    """As the API server takes it."""
    meta = pod.metadata
    digest = blake2b(f"{meta.uid}\n{text}".encode(), digest_size=8).hexdigest()
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name[:_NAME_MAX]}.{digest}", "namespace": meta.namespace},
        "eventTime": f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "type": "Warning",
        "reason": "NodesealProblem",
        "action": "Enrolling",
        "reportingController": CONTROLLER,
        "reportingInstance": f"nodeseal-agent-{node}"[:128],
        "note": text[:_NOTE_MAX],
        "regarding": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
    }
