"""What the agent reads of Kubernetes' objects: the fields that it needs, and no others.

The rest of an object is passed over while it is parsed: a pod is 5 KB of JSON, and a few hundred bytes here. The shapes
are those of https://kubernetes.io/docs/reference/kubernetes-api/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import quote

from msgspec import Struct, field

Key = tuple[str, str]
"""(namespace, or "" of what has none; name)"""


class Meta(Struct, frozen=True, rename="camel"):
    """ObjectMeta. Its version is left out: objects that say the same are equal."""

    name: str
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    deletion_timestamp: str | None = None
    """When it is to be gone; None: it is not being deleted."""


class KubernetesObject(Struct, frozen=True, rename="camel"):
    """What all have."""

    metadata: Meta

    @property
    def key(self) -> Key:
        """By which it is known among its kind."""
        return self.metadata.namespace, self.metadata.name


T = TypeVar("T", bound=KubernetesObject)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind of objects as the API server serves it. `group`: "" of the oldest kinds."""

    group: str
    version: str
    plural: str
    type: type[T]

    @property
    def path(self) -> str:
        """Where all objects of the kind are, of all namespaces."""
        return f"/{f'apis/{self.group}' if self.group else 'api'}/{self.version}/{self.plural}"

    def within(self, namespace: str) -> str:
        """Where its objects of this namespace are; "": of a kind that has none."""
        if namespace == "":
            return self.path
        root, _, plural = self.path.rpartition("/")
        return f"{root}/namespaces/{quote(namespace, safe='')}/{plural}"

    def at(self, key: Key) -> str:
        """Where one object is."""
        namespace, name = key
        return f"{self.within(namespace)}/{quote(name, safe='')}"

    @property
    def name(self) -> str:
        """As in RBAC's rules and in messages: "pods", "endpointslices.discovery.k8s.io"."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


class Namespace(KubernetesObject, frozen=True):
    """Its labels say who is enrolled."""


class PodIp(Struct, frozen=True):
    """One address of a pod."""

    ip: str = ""


class PodSpec(Struct, frozen=True, rename="camel"):
    """What was asked for."""

    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False


class PodStatus(Struct, frozen=True, rename="camel"):
    """What is."""

    phase: str = ""
    """ "Pending", "Running", "Succeeded" or "Failed"."""
    pod_ips: list[PodIp] = field(default_factory=list, name="podIPs")


class Pod(KubernetesObject, frozen=True):
    """A workload, if it is wanted."""

    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


NAMESPACES = Resource("", "v1", "namespaces", Namespace)
PODS = Resource("", "v1", "pods", Pod)
