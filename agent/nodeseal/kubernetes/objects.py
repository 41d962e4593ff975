"""What the agent reads of Kubernetes' objects: the fields that it needs, and no others.

The rest of an object is passed over while it is parsed: a pod is 5 KB of JSON, and a few hundred bytes here. The shapes
are those of https://kubernetes.io/docs/reference/kubernetes-api/.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from sys import intern
from typing import Generic, TypeVar
from urllib.parse import quote

from msgspec import Struct, field
from msgspec.structs import force_setattr

Key = tuple[str, str]
"""(namespace, or "" of what has none; name)"""


class PlainMeta(Struct, frozen=True, rename="camel"):
    """ObjectMeta. Its version is left out: objects that say the same are equal. So are annotations: whoever may write
    an object may write 256 KiB of them, and a cluster has thousands of Services and EndpointSlices."""

    name: str
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)


_ANNOTATIONS_READ = ("nodeseal.io/", "kubernetes.io/config.", "k8s.v1.cni.cncf.io/network-status")
"""How the names of those begin that anybody here reads."""
_ANNOTATIONS_MOST = 100
"""Of those; anybody who may start pods may write thousands."""


class Meta(PlainMeta, frozen=True, rename="camel"):
    """The same of those kinds whose annotations count."""

    annotations: dict[str, str] = field(default_factory=dict)
    """Those that are read."""
    deletion_timestamp: str | None = None
    """When it is to be gone; None: it is not being deleted."""

    def __post_init__(self) -> None:
        read = ((name, text) for name, text in self.annotations.items() if name.startswith(_ANNOTATIONS_READ))
        force_setattr(self, "annotations", dict(islice(read, _ANNOTATIONS_MOST)))


class KubernetesObject(Struct, frozen=True, rename="camel"):
    """What all have."""

    metadata: PlainMeta

    @property
    def key(self) -> Key:
        """By which it is known among its kind."""
        return self.metadata.namespace, self.metadata.name


T = TypeVar("T", bound=KubernetesObject)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind of objects as the API server serves it. `group`: "" of the oldest kinds. `namespace`: whose objects alone
    are meant where all are asked for; "": those of all."""

    group: str
    version: str
    plural: str
    type: type[T]
    namespace: str = ""

    @property
    def path(self) -> str:
        """Where all that are meant are."""
        return self.within(self.namespace)

    def within(self, namespace: str) -> str:
        """Where its objects of this namespace are; "": of all, or of a kind that has none."""
        root = f"/{f'apis/{self.group}' if self.group else 'api'}/{self.version}"
        inside = f"namespaces/{quote(namespace, safe='')}/" if namespace else ""
        return f"{root}/{inside}{self.plural}"

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

    metadata: Meta


class PodIp(Struct, frozen=True):
    """One address of a pod."""

    ip: str = ""


class ContainerPort(Struct, frozen=True, rename="camel"):
    """A port that a container says it listens at."""

    container_port: int = 0
    protocol: str = "TCP"


class Container(Struct, frozen=True):
    """One of a pod's."""

    ports: list[ContainerPort] = field(default_factory=list)


class PodSpec(Struct, frozen=True, rename="camel"):
    """What was asked for."""

    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False
    containers: list[Container] = field(default_factory=list)
    init_containers: list[Container] = field(default_factory=list)


class PodStatus(Struct, frozen=True, rename="camel"):
    """What is."""

    phase: str = ""
    """ "Pending", "Running", "Succeeded" or "Failed"."""
    pod_ips: list[PodIp] = field(default_factory=list, name="podIPs")


class Pod(KubernetesObject, frozen=True):
    """A workload, if it is wanted."""

    metadata: Meta
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


# ---- services. Lists and objects that are empty may be null.


class ServicePort(Struct, frozen=True, rename="camel", gc=False):
    """A port of a service."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    node_port: int = 0
    """At which it is dialled at any node; 0: at none."""


class ClientIpConfig(Struct, frozen=True, rename="camel", gc=False):
    """What affinity by the client's address is."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Struct, frozen=True, gc=False):
    """What each kind of affinity is."""

    client_ip: ClientIpConfig | None = field(default=None, name="clientIP")


class ServiceSpec(Struct, frozen=True, rename="camel"):
    """What is to be balanced, and how."""

    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    """ "None": there is none, and nothing is balanced."""
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    """One or one of each family, `cluster_ip` first."""
    ports: list[ServicePort] | None = None
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    load_balancer_source_ranges: list[str] | None = None


class LoadBalancerIngress(Struct, frozen=True, rename="camel", gc=False):
    """An address at which a load balancer takes connections."""

    ip: str = ""
    ip_mode: str | None = None
    """ "VIP": packets reach a node with this destination; "Proxy": they reach it with another. None: "VIP"."""


class LoadBalancerStatus(Struct, frozen=True):
    """What a load balancer has set up."""

    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Struct, frozen=True, rename="camel"):
    """What is."""

    load_balancer: LoadBalancerStatus | None = None


class Service(KubernetesObject, frozen=True):
    """Addresses that stand for its endpoints."""

    spec: ServiceSpec = field(default_factory=ServiceSpec)
    status: ServiceStatus | None = None


class EndpointConditions(Struct, frozen=True, gc=False):
    """How an endpoint is; None: unknown, which counts as ready, serving and not terminating."""

    ready: bool | None = None
    """Never while it is terminating, unless its service publishes what is not ready."""
    serving: bool | None = None
    """The same, but also while it is terminating."""
    terminating: bool | None = None


_CONDITIONS: dict[EndpointConditions, EndpointConditions] = {}
"""Each once: there are 27."""


class Hint(Struct, frozen=True, gc=False):
    """For whom an endpoint is meant."""

    name: str


class EndpointHints(Struct, frozen=True, rename="camel", gc=False):
    """The zones and the nodes whose clients an endpoint is meant for."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(Struct, frozen=True, rename="camel", gc=False):
    """One endpoint."""

    addresses: tuple[str, ...] | None = None
    """The first one counts."""
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    hints: EndpointHints | None = None

    def __post_init__(self) -> None:
        # A cluster has tens of thousands of them, on fewer nodes, and nearly all are ready.
        if self.node_name is not None:
            force_setattr(self, "node_name", intern(self.node_name))
        if self.conditions is not None:
            force_setattr(self, "conditions", _CONDITIONS.setdefault(self.conditions, self.conditions))


class EndpointPort(Struct, frozen=True, gc=False):
    """A port at which all endpoints of a slice listen."""

    name: str | None = None
    """Of the service's port that it is for."""
    port: int | None = None
    """None: every one, which nobody balances."""
    protocol: str | None = None
    """None: TCP"""


class EndpointSlice(KubernetesObject, frozen=True, rename="camel"):
    """Some of the endpoints of a service, of one family."""

    address_type: str = ""
    """ "IPv4", "IPv6" or "FQDN"."""
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class NodeAddress(Struct, frozen=True, gc=False):
    """An address of a node, or a name."""

    type: str
    """ "InternalIP", "ExternalIP", "Hostname" or another."""
    address: str


class NodeInfo(Struct, frozen=True, gc=False):
    """Which machine it is, and which boot of it."""

    boot: str = field(name="bootID", default="")


class NodeCondition(Struct, frozen=True, gc=False):
    """How it is, in one regard."""

    type: str = ""
    status: str = ""


class NodeStatus(Struct, frozen=True, rename="camel"):
    """What is."""

    addresses: list[NodeAddress] | None = None
    node_info: NodeInfo | None = None
    conditions: list[NodeCondition] | None = None


class Node(KubernetesObject, frozen=True):
    """A node of the cluster. Its labels say in which zone it is."""

    status: NodeStatus | None = None

    @property
    def ready(self) -> bool:
        """Its kubelet is there."""
        conditions = self.status.conditions if self.status is not None else None
        return any(one.type == "Ready" and one.status == "True" for one in conditions or ())

    @property
    def boot(self) -> str:
        """As its kubelet says; "": it does not."""
        info = self.status.node_info if self.status is not None else None
        return info.boot if info is not None else ""


NAMESPACES = Resource("", "v1", "namespaces", Namespace)
PODS = Resource("", "v1", "pods", Pod)
SERVICES = Resource("", "v1", "services", Service)
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", EndpointSlice)
NODES = Resource("", "v1", "nodes", Node)
