"""Where pods are: of each its UID, node and service account, and nothing else, because a cluster may have 50,000."""

from __future__ import annotations

from msgspec import Struct, field

from nodeseal.kubernetes.objects import KubernetesObject, Resource

NOT_ENDED = "status.phase!=Succeeded,status.phase!=Failed"
"""A field selector: pods whose containers may still run. One that ends is told by a watch as one that was deleted."""
BOUND = f"spec.nodeName!=,{NOT_ENDED}"
"""Those of them that are bound to a node."""


class PlacedMeta(Struct, frozen=True, gc=False):
    """What names a pod."""

    name: str
    namespace: str = ""
    uid: str = ""


class PlacedSpec(Struct, frozen=True, rename="camel", gc=False):
    """What places it."""

    node_name: str = ""
    service_account_name: str = ""
    """Empty of a static pod's mirror, which a kubelet can make as it likes."""


class PlacedPod(KubernetesObject, frozen=True, gc=False):
    """A pod's place."""

    metadata: PlacedMeta  # type: ignore[assignment] # no labels, no annotations
    spec: PlacedSpec = field(default_factory=PlacedSpec)

    @property
    def uid(self) -> str:
        """Of this very pod; another one of its name has another."""
        return self.metadata.uid

    @property
    def node(self) -> str:
        """Empty: it is not bound to any yet."""
        return self.spec.node_name

    @property
    def account(self) -> tuple[str, str]:
        """(namespace, service account)"""
        return self.metadata.namespace, self.spec.service_account_name


PLACED_PODS = Resource("", "v1", "pods", PlacedPod)
