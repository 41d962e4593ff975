"""What Services of Kubernetes lead to: rows of one table, as objects of the API, dials and where these arrive.

A row needs no selector: its EndpointSlices are written by hand, so that a real kube-proxy can be asked the same with
whatever listens at the addresses of a World. docs/kubernetes-services.md has the rows as a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

REFUSED, SILENT, ALONE = "refused", "silent", "left alone"
"""`connect()` fails with ECONNREFUSED; nobody answers it; nodeseal does nothing, and kube-proxy decides."""
NAMESPACE = "shop"

PODS = ("client", "a1", "a2", "b1", "b2", "c1")
"""client and a* are on node1, b* on node2, c1 is on node3."""
OUTSIDE = "outside"
"""An endpoint that is no pod."""


@dataclass(frozen=True, slots=True)
class World:
    """Real names and addresses for those in the rows. The client, and whoever decides for it, is on node1, in zone-a;
    node2 and node3 are in zone-b."""

    nodes: Mapping[str, str]
    """node1, node2, node3"""
    addresses: Mapping[str, str]
    """Of the pods and the outside endpoint; of "node1" and so on, what the Node has as InternalIP, and of
    "node2-external" as ExternalIP; of "cluster", "cluster-2", "balancer" and "external", which the services have. With
    "/6" behind the name, the IPv6 address."""

    def text(self, text: str) -> str:
        """`text` with what stands for "$name" in it."""
        if not text.startswith("$"):
            return text
        return self.nodes[text[1:]] if text[1:] in self.nodes else self.addresses[text[1:].removeprefix("at-")]

    def filled(self, value: Any) -> Any:
        """The same of all texts in a JSON value."""
        if isinstance(value, dict):
            return {key: self.filled(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.filled(item) for item in value]
        return self.text(value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of a slice; `name` is one of PODS, or OUTSIDE."""

    name: str
    ready: bool = True
    serving: bool | None = None
    """None: as `ready`."""
    terminating: bool = False
    zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()

    def manifest(self, version: int) -> Json:
        """As in an EndpointSlice."""
        found: Json = {
            "addresses": [f"$at-{self.name}" + ("/6" if version == 6 else "")],
            "conditions": {
                "ready": self.ready,
                "serving": self.ready if self.serving is None else self.serving,
                "terminating": self.terminating,
            },
        }
        if self.name in PODS:
            found["nodeName"] = f"${node_of(self.name)}"
        hints: Json = {}
        if self.zones:
            hints["forZones"] = [{"name": zone} for zone in self.zones]
        if self.for_nodes:
            hints["forNodes"] = [{"name": f"${node}"} for node in self.for_nodes]
        return found | ({"hints": hints} if hints else {})


def ending(name: str) -> Endpoint:
    """One that is being deleted, and still serves."""
    return Endpoint(name, ready=False, serving=True, terminating=True)


def node_of(pod: str) -> str:
    """Where a pod is."""
    return {"a": "node1", "b": "node2", "c": "node3"}[pod[0]] if pod != "client" else "node1"


@dataclass(frozen=True, slots=True)
class Slice:
    """An EndpointSlice; `ports`: by the name of the service's port, with "/UDP" behind it for another protocol."""

    endpoints: tuple[Endpoint | str, ...]
    ports: Mapping[str, int] = field(default_factory=lambda: {"http": 8080})
    version: int = 4

    def manifest(self, service: str, number: int) -> Json:
        """As the API has it."""
        ends = [Endpoint(one) if isinstance(one, str) else one for one in self.endpoints]
        ports = ((*name.partition("/"), port) for name, port in self.ports.items())
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service}-{number}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": f"IPv{self.version}",
            "endpoints": [one.manifest(self.version) for one in ends],
            "ports": [{"name": name, "protocol": kind or "TCP", "port": port} for name, _, kind, port in ports],
        }


HTTP: Json = {"name": "http", "port": 80, "protocol": "TCP"}
HTTP_AT_NODES: Json = HTTP | {"nodePort": 30080}


@dataclass(frozen=True, slots=True)
class Service:
    """A Service with one port, "http" at 80, unless its `spec` has others; and its EndpointSlices."""

    slices: tuple[Slice, ...] = ()
    spec: Json = field(default_factory=dict)
    status: Json = field(default_factory=dict)
    name: str = "web"
    labels: Json = field(default_factory=dict)

    def manifest(self) -> Json:
        """As the API has it."""
        spec = {"type": "ClusterIP", "clusterIP": "$at-cluster", "clusterIPs": ["$at-cluster"], "ports": [HTTP]}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": NAMESPACE, "labels": self.labels},
            "spec": spec | self.spec,
            "status": self.status,
        }


@dataclass(frozen=True, slots=True)
class Dial:
    """What a pod on node1 dials: `to` is a name of World.addresses. `arrives`: at any of "a1:8080 b1:8080", or
    REFUSED, SILENT, ALONE."""

    to: str
    port: int
    arrives: str

    @property
    def endpoints(self) -> frozenset[str]:
        """Where it may arrive; none if it does not."""
        return frozenset() if self.arrives in (REFUSED, SILENT, ALONE) else frozenset(self.arrives.split())


@dataclass(frozen=True, slots=True)
class Row:
    """`kube_proxy`: what it does, as a sentence of Markdown; `nodeseal`: what nodeseal does, if it is not the same."""

    name: str
    kube_proxy: str
    services: tuple[Service, ...] = ()
    dials: tuple[Dial, ...] = ()
    nodeseal: str = ""
    tests: tuple[str, ...] = ()
    """Tests of tests/unit, of a row without dials."""

    def objects(self, world: World) -> Iterator[Json]:
        """All Services and EndpointSlices, as the API has them."""
        for service in self.services:
            yield world.filled(service.manifest())
            for number, part in enumerate(service.slices):
                yield world.filled(part.manifest(service.name, number))


def _row(
    name: str,
    kube_proxy: str,
    *parts: Slice | Service | Dial,
    spec: Json | None = None,
    status: Json | None = None,
    labels: Json | None = None,
    nodeseal: str = "",
) -> Row:
    """Of slices it makes one service."""
    services = [part for part in parts if isinstance(part, Service)]
    slices = tuple(part for part in parts if isinstance(part, Slice))
    if not services:
        services = [Service(slices, spec or {}, status or {}, labels=labels or {})]
    return Row(name, kube_proxy, tuple(services), tuple(part for part in parts if isinstance(part, Dial)), nodeseal)


def _at(to: str, arrives: str, port: int = 80) -> Dial:
    return Dial(to, port, arrives)


LOCAL_INSIDE: Json = {"internalTrafficPolicy": "Local"}
AT_NODES: Json = {"type": "NodePort", "ports": [HTTP_AT_NODES]}
AT_NODES_LOCAL = AT_NODES | {"externalTrafficPolicy": "Local"}
BALANCED: Json = {"type": "LoadBalancer"}
OUTWARD: Json = {"externalIPs": ["$at-external"]}
BOTH_FAMILIES: Json = {
    "clusterIPs": ["$at-cluster", "$at-cluster/6"],
    "ipFamilies": ["IPv4", "IPv6"],
    "ipFamilyPolicy": "RequireDualStack",
}


def _balancer(**more: str) -> Json:
    return {"loadBalancer": {"ingress": [{"ip": "$at-balancer", **more}]}}


def _zoned(name: str, zone: str, *nodes: str) -> Endpoint:
    return Endpoint(name, zones=(zone,), for_nodes=nodes)


PARTS: dict[str, tuple[Row, ...]] = {
    "Ports and addresses": (
        _row(
            "cluster-ip",
            "A connection to the cluster IP goes to any of the endpoints that are ready, at the target port.",
            Slice(("a1", "b1", Endpoint("b2", ready=False))),
            _at("cluster", "a1:8080 b1:8080"),
        ),
        _row(
            "named-target-port-differs",
            "A target port that is a name may be another number in each pod: each EndpointSlice has its own.",
            Slice(("a1",), {"http": 8080}),
            Slice(("b1",), {"http": 9090}),
            _at("cluster", "a1:8080 b1:9090"),
        ),
        _row(
            "several-ports",
            "Each port of a Service has its own endpoints.",
            Slice(("a1", "b1"), {"http": 8080, "metrics": 9100}),
            Slice(("b2",), {"metrics": 9100}),
            _at("cluster", "a1:8080 b1:8080"),
            _at("cluster", "a1:9100 b1:9100 b2:9100", 9000),
            spec={"ports": [HTTP, {"name": "metrics", "port": 9000, "protocol": "TCP"}]},
        ),
        _row(
            "port-that-it-does-not-have",
            "Any other TCP port of the cluster IP: by nftables it is refused, by iptables it leaves the node for "
            "wherever the routes lead.",
            Slice(("a1",)),
            _at("cluster", REFUSED, 81),
            nodeseal="Refused.",
        ),
        _row(
            "udp-and-sctp",
            "UDP and SCTP ports of a Service have endpoints of their own.",
            Slice(("a1", "b1"), {"dns-tcp": 5353, "dns/UDP": 5354}),
            Slice(("b2",), {"dns-tcp/UDP": 5355}),
            _at("cluster", "a1:5353 b1:5353", 53),
            spec={
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                    {"name": "sctp", "port": 5000, "protocol": "SCTP"},
                ]
            },
            nodeseal="The same for TCP. UDP and SCTP are never captured: kube-proxy has them.",
        ),
        _row(
            "no-tcp-port",
            "A Service without a TCP port takes no TCP.",
            Slice(("a1",), {"dns/UDP": 5353}),
            _at("cluster", ALONE, 53),
            spec={"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]},
            nodeseal="Nothing: kube-proxy has it.",
        ),
        _row(
            "dual-stack",
            "Each family of a Service leads to the endpoints of that family.",
            Slice(("a1", "b1")),
            Slice(("b1", "b2"), version=6),
            _at("cluster", "a1:8080 b1:8080"),
            _at("cluster/6", "b1/6:8080 b2/6:8080"),
            spec=BOTH_FAMILIES,
        ),
        _row(
            "single-stack",
            "A Service of one family has no use for EndpointSlices of the other, nor for names (`FQDN`).",
            Slice(("a1",)),
            Slice(("b1",), version=6),
            _at("cluster", "a1:8080"),
            _at("cluster/6", ALONE),
        ),
    ),
    "Services that are not balanced": (
        _row(
            "headless",
            "A headless Service (`clusterIP: None`) has no address: its clients dial pods.",
            Slice(("a1",)),
            _at("a1", "a1:8080", 8080),
            spec={"clusterIP": "None", "clusterIPs": ["None"]},
            nodeseal="The same: what dials a pod's address goes to that pod.",
        ),
        _row(
            "external-name",
            "`ExternalName` is a matter of DNS alone.",
            Slice(("a1",)),
            _at("cluster", ALONE),
            spec={"type": "ExternalName", "externalName": "example.org", "clusterIP": "", "clusterIPs": []},
            nodeseal="Nothing.",
        ),
        _row(
            "another-proxy",
            "A Service that is labelled `service.kubernetes.io/service-proxy-name` is another proxy's.",
            Slice(("a1",)),
            _at("cluster", ALONE),
            labels={"service.kubernetes.io/service-proxy-name": "other"},
            nodeseal="Nothing.",
        ),
    ),
    "Which endpoints count": (
        _row(
            "without-selector",
            "EndpointSlices written by hand may have any address, inside and outside of the cluster.",
            Slice(("outside", "a1"), {"http": 8443}),
            _at("cluster", "outside:8443 a1:8443"),
            nodeseal="The same. What is no enrolled workload is dialled in plaintext.",
        ),
        _row(
            "no-endpoints",
            "A Service without a usable endpoint refuses (`REJECT`): `connect()` fails with ECONNREFUSED.",
            Slice((Endpoint("a1", ready=False),)),
            _at("cluster", REFUSED),
            _at("node1", REFUSED, 30080),
            _at("node2", REFUSED, 30080),
            spec=AT_NODES,
        ),
        _row(
            "publish-not-ready-addresses",
            "With `publishNotReadyAddresses` every endpoint counts as ready, whatever its probes say.",
            Slice((Endpoint("a1", serving=False), Endpoint("b1", terminating=True))),
            _at("cluster", "a1:8080 b1:8080"),
            spec={"publishNotReadyAddresses": True},
        ),
        _row(
            "terminating",
            "A pod that is being deleted gets no new connection while another is ready.",
            Slice(("a1", ending("b1"))),
            _at("cluster", "a1:8080"),
        ),
        _row(
            "serving-while-terminating",
            "If no endpoint is ready, those that are being deleted and still serve are used.",
            Slice(
                (
                    Endpoint("a1", ready=False),
                    Endpoint("a2", ready=False, serving=True),
                    ending("b1"),
                    Endpoint("b2", ready=False, terminating=True),
                )
            ),
            _at("cluster", "b1:8080"),
        ),
        _row(
            "address-used-again",
            "Of two endpoints with one address the one that is not being deleted counts.",
            Slice(("a1", "b1")),
            Slice((ending("a1"),)),
            _at("cluster", "a1:8080 b1:8080"),
        ),
    ),
    "Traffic policies and hints": (
        _row(
            "internal-local",
            "`internalTrafficPolicy: Local`: the cluster IP leads to the endpoints of the client's node.",
            Slice(("a1", "a2", "b1")),
            _at("cluster", "a1:8080 a2:8080"),
            spec=LOCAL_INSIDE,
        ),
        _row(
            "internal-local-terminating",
            "The fallback to those that are being deleted is made among the endpoints of the node.",
            Slice((ending("a1"), "b1")),
            _at("cluster", "a1:8080"),
            spec=LOCAL_INSIDE,
        ),
        _row(
            "internal-local-none-here",
            "With endpoints on other nodes alone the connection is dropped: `connect()` waits.",
            Slice(("b1", "b2")),
            _at("cluster", SILENT),
            spec=LOCAL_INSIDE,
        ),
        _row(
            "internal-local-none",
            "With no endpoint on any node it is refused.",
            Slice((Endpoint("b1", ready=False),)),
            _at("cluster", REFUSED),
            spec=LOCAL_INSIDE,
        ),
        _row(
            "zone-hints",
            "If every ready endpoint has a hint for zones, and one of them is for the client's zone, those for it are "
            "used.",
            Slice((_zoned("a1", "zone-a"), _zoned("b1", "zone-b"), _zoned("b2", "zone-a"))),
            _at("cluster", "a1:8080 b2:8080"),
            spec={"trafficDistribution": "PreferSameZone"},
        ),
        _row(
            "zone-hints-incomplete",
            "If one ready endpoint has no hint, hints do not count.",
            Slice((_zoned("a1", "zone-a"), _zoned("b1", "zone-b"), "b2")),
            _at("cluster", "a1:8080 b1:8080 b2:8080"),
            spec={"trafficDistribution": "PreferSameZone"},
        ),
        _row(
            "zone-hints-for-others",
            "If none is for the client's zone, hints do not count.",
            Slice((_zoned("b1", "zone-b"), _zoned("b2", "zone-c"))),
            _at("cluster", "b1:8080 b2:8080"),
            spec={"trafficDistribution": "PreferSameZone"},
        ),
        _row(
            "node-hints",
            "The same of hints for nodes (`PreferSameNode`), which count before those for zones.",
            Slice((_zoned("a1", "zone-a", "node1"), _zoned("a2", "zone-a", "node2"), _zoned("b1", "zone-a", "node2"))),
            _at("cluster", "a1:8080"),
            spec={"trafficDistribution": "PreferSameNode"},
        ),
        _row(
            "node-hints-incomplete",
            "If one ready endpoint has no hint for nodes, hints for zones count.",
            Slice((_zoned("a1", "zone-a", "node1"), _zoned("a2", "zone-a"), _zoned("b1", "zone-b"))),
            _at("cluster", "a1:8080 a2:8080"),
            spec={"trafficDistribution": "PreferSameNode"},
        ),
        _row(
            "node-hints-for-others",
            "With no endpoint for the client's node, hints for zones count.",
            Slice((_zoned("a1", "zone-a", "node3"), _zoned("b1", "zone-b", "node2"))),
            _at("cluster", "a1:8080"),
            spec={"trafficDistribution": "PreferSameNode"},
        ),
        _row(
            "hints-and-terminating",
            "Hints are those of ready endpoints; if none is ready, whatever still serves is used, wherever it is.",
            Slice((Endpoint("a1", ready=False, zones=("zone-a",)), ending("b1"))),
            _at("cluster", "b1:8080"),
            spec={"trafficDistribution": "PreferSameZone"},
        ),
    ),
    "Node ports": (
        _row(
            "node-port",
            "A node port, dialled at any node's address, leads to any endpoint; the client's address is replaced by a "
            "node's.",
            Slice(("a1", "b1")),
            _at("node1", "a1:8080 b1:8080", 30080),
            _at("node2", "a1:8080 b1:8080", 30080),
            _at("node2-external", "a1:8080 b1:8080", 30080),
            _at("node2", ALONE, 30081),
            spec=AT_NODES,
            nodeseal="The same endpoints, by mutual TLS, and the server sees the client's own address.",
        ),
        _row(
            "node-port-dual-stack",
            "A node port is one for the families of its Service.",
            Slice(("a1",)),
            Slice(("b1",), version=6),
            _at("node2", "a1:8080", 30080),
            _at("node2/6", "b1/6:8080", 30080),
            spec=AT_NODES | BOTH_FAMILIES,
        ),
        _row(
            "node-port-local-at-own-node",
            "`externalTrafficPolicy: Local`: what a pod dials at its own node's address may go to all endpoints.",
            Slice(("a1", "b1")),
            _at("node1", "a1:8080 b1:8080", 30080),
            spec=AT_NODES_LOCAL,
        ),
        _row(
            "node-port-local-at-another",
            "At another node's address it leads to the endpoints on that node, unless kube-proxy there knows the "
            "client for a pod of the cluster (`detectLocalMode: ClusterCIDR`, and no masquerading on the way).",
            Slice(("a1", "b1", ending("b2"), ending("c1"))),
            _at("node2", "b1:8080", 30080),
            _at("node3", "c1:8080", 30080),
            spec=AT_NODES_LOCAL,
            nodeseal="To the endpoints on that node.",
        ),
        _row(
            "node-port-local-none-there",
            "With none on that node the connection is dropped.",
            Slice(("a1", "b1")),
            _at("node3", SILENT, 30080),
            spec=AT_NODES_LOCAL,
        ),
        _row(
            "node-port-internal-local",
            "`internalTrafficPolicy` says nothing of node ports.",
            Slice(("b1",)),
            _at("cluster", SILENT),
            _at("node1", "b1:8080", 30080),
            spec=AT_NODES | LOCAL_INSIDE,
        ),
    ),
    "Load balancers and external addresses": (
        _row(
            "load-balancer",
            "The address of a load balancer that keeps the destination (`ipMode: VIP`, or none) is short-circuited.",
            Slice(("a1", "b1")),
            _at("balancer", "a1:8080 b1:8080"),
            _at("balancer", ALONE, 81),
            spec=BALANCED,
            status=_balancer(),
        ),
        _row(
            "load-balancer-proxy",
            "The address of one that does not (`ipMode: Proxy`) is left to the load balancer.",
            Slice(("a1", "b1")),
            _at("balancer", ALONE),
            _at("cluster", "a1:8080 b1:8080"),
            spec=BALANCED,
            status=_balancer(ipMode="Proxy"),
            nodeseal="The same: it is left alone.",
        ),
        _row(
            "load-balancer-local",
            "`externalTrafficPolicy: Local`: what a pod dials there may go to all endpoints.",
            Slice(("b1",)),
            _at("balancer", "b1:8080"),
            spec=BALANCED | {"externalTrafficPolicy": "Local"},
            status=_balancer(ipMode="VIP"),
        ),
        _row(
            "load-balancer-source-ranges",
            "`loadBalancerSourceRanges` that do not have the client's address: its connections to the load balancer "
            "are dropped. To the cluster IP they are not.",
            Slice(("a1",)),
            _at("balancer", SILENT),
            _at("cluster", "a1:8080"),
            spec=BALANCED | {"loadBalancerSourceRanges": ["192.0.2.0/24"]},
            status=_balancer(),
        ),
        _row(
            "load-balancer-source-ranges-with-client",
            "A client in one of the ranges is let through.",
            Slice(("a1",)),
            _at("balancer", "a1:8080"),
            spec=BALANCED | {"loadBalancerSourceRanges": ["192.0.2.0/24", " 10.0.0.0/8 "]},
            status=_balancer(),
        ),
        _row(
            "load-balancer-address-shared",
            "Two Services may share the address of a load balancer with different ports.",
            Service((Slice(("a1",)),), BALANCED, _balancer()),
            Service(
                (Slice(("b1",), {"": 9000}),),
                BALANCED | {"clusterIP": "$at-cluster-2", "clusterIPs": ["$at-cluster-2"], "ports": [{"port": 81}]},
                _balancer(),
                "other",
            ),
            _at("balancer", "a1:8080"),
            _at("balancer", "b1:9000", 81),
        ),
        _row(
            "load-balancer-at-a-node",
            "The address of a load balancer may be a node's.",
            Slice(("a1", "b1")),
            _at("node2", "a1:8080 b1:8080"),
            _at("node2", ALONE, 81),
            spec=BALANCED,
            status={"loadBalancer": {"ingress": [{"ip": "$at-node2"}]}},
        ),
        _row(
            "external-ips",
            "`externalIPs` lead to the Service at its ports, from every node.",
            Slice(("a1", "b1")),
            _at("external", "a1:8080 b1:8080"),
            _at("external", ALONE, 81),
            spec=OUTWARD,
        ),
        _row(
            "external-ips-local",
            "Both traffic policies `Local`: they say nothing of what a pod dials at an external address.",
            Slice(("b1",)),
            _at("external", "b1:8080"),
            _at("cluster", SILENT),
            spec=OUTWARD | LOCAL_INSIDE | {"externalTrafficPolicy": "Local"},
        ),
        _row(
            "external-ip-of-a-pod",
            "An external IP that is a pod's address takes the connections to that pod.",
            Slice(("b1",)),
            _at("a1", "a1:80"),
            spec={"externalIPs": ["$at-a1"]},
            nodeseal="A workload's own address stays its own: who may write a Service cannot take it.",
        ),
        _row(
            "external-ip-claimed-twice",
            "Two Services with one external IP and one port: either of them.",
            Service((Slice(("a1",)),), OUTWARD),
            Service(
                (Slice(("b1",)),),
                OUTWARD | {"clusterIP": "$at-cluster-2", "clusterIPs": ["$at-cluster-2"]},
                {},
                "other",
            ),
            _at("external", REFUSED),
            _at("cluster", "a1:8080"),
            nodeseal="Refused (`contested-address`): it is neither's.",
        ),
    ),
    "The client itself": (
        _row(
            "hairpin",
            "A pod that dials its own Service may be led to itself; it then sees a node's address as its client's.",
            Slice(("client",)),
            _at("cluster", "client:8080"),
            nodeseal="The same, and it sees its own address.",
        ),
    ),
    "Many endpoints, and clients that keep theirs": (
        Row(
            "many-endpoints",
            "Each connection goes to any of the endpoints, however many there are.",
            tests=(
                "test_core_decider.py: test_of_many_endpoints_of_a_front_each_is_named_sooner_or_later",
                "test_core_decider.py: test_answers_begin_with_any_of_a_services_endpoints",
            ),
            nodeseal="A client uses 32 of them at a time, and others 10 s later. Hints and policies are applied to all "
            "before.",
        ),
        Row(
            "affinity",
            "`sessionAffinity: ClientIP`: a client keeps its endpoint while others come and go. Which one it gets is "
            "random.",
            tests=(
                "test_core_decider.py: test_a_client_with_an_affinity_gets_one_endpoint_of_all_and_keeps_it",
                "test_core_choice.py: test_it_is_kept_while_endpoints_come_and_go",
                "test_core_choice.py: test_clients_are_spread_over_all_endpoints",
                "test_core_choice.py: test_another_core_chooses_the_same",
            ),
            nodeseal="The same, of all endpoints. The client is the workload. Which one it gets depends on its name "
            "and on the endpoints, so that it keeps it when the core is replaced.",
        ),
        Row(
            "affinity-timeout",
            "After `timeoutSeconds` (3 hours, if nothing is said) without a connection it is chosen anew.",
            tests=(
                "test_core_choice.py: test_it_is_kept_for_the_time_since_the_last_connection",
                "test_core_choice.py: test_a_core_asks_again_well_before_the_time_is_over",
                "test_decisions.c: an_answer_that_lasts_for_a_while_is_asked_for_again_after_it",
            ),
            nodeseal="The same, up to a tenth of that time later, at most a minute. The choice is the same again if "
            "the endpoints are.",
        ),
        Row(
            "affinity-endpoint-gone",
            "If it is no usable endpoint any more, another one is chosen, and kept.",
            tests=("test_core_choice.py: test_it_is_chosen_anew_when_it_is_none_any_more",),
        ),
        Row(
            "affinity-in-every-way",
            "The client keeps it for a port of a Service in whichever way it dials that.",
            tests=(
                "test_kubernetes_services.py: test_an_affinity_is_one_for_all_ways_to_a_port",
                "test_core_choice.py: test_ports_families_and_services_are_apart",
            ),
        ),
    ),
}

ROWS = tuple(row for rows in PARTS.values() for row in rows)
