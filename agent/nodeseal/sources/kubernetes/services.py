"""What a Service of Kubernetes and its EndpointSlices are in the mesh model, as this node sees them. Pure.

Whom a connection may go to is decided as kube-proxy does it (pkg/proxy/topology.go and serviceport.go of Kubernetes
1.36), since capture comes before it; docs/kubernetes-services.md compares the two row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from nodeseal.kubernetes.objects import Endpoint, EndpointSlice, Hint, Key, Service, ServicePort
from nodeseal.kubernetes.objects import Node as NodeObject
from nodeseal.mesh.address import Address, AddressError, ApplicationAddress, parse_address
from nodeseal.mesh.exclusions import Network
from nodeseal.mesh.node import Node
from nodeseal.mesh.service import Affinity, Front, NodeEndpoints, Way
from nodeseal.mesh.service import Service as MeshService
from nodeseal.mesh.workload import WorkloadName

SERVICE_NAME = "kubernetes.io/service-name"
"""The label of an EndpointSlice that names its service."""
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
"""A service with this label is not kube-proxy's, whatever it says."""
ZONE = "topology.kubernetes.io/zone"

MOST = 50_000
"""Addresses and endpoints of all ports of one service together. Whoever may write a Service may write one with
thousands of ports and of addresses, and every agent would have all of their pairs."""
MOST_ADDRESSES = 64
"""External IPs of one service, and addresses of its load balancer: each is entered in maps of every node."""

_FAMILIES = {"IPv4": 4, "IPv6": 6}
_AFFINITY_SECONDS = 10800
_NODE_ADDRESSES = ("InternalIP", "ExternalIP")


@dataclass(frozen=True, slots=True)
class Here:
    """The node that decides."""

    node: str
    zone: str = ""
    """ "": none is known."""


@dataclass(frozen=True, slots=True)
class FoundService:
    """`service`: None: nowhere is it dialled that is ours to decide about. `problems`: what of it is passed over, one
    line each."""

    service: MeshService | None
    problems: tuple[str, ...] = ()


def here_of(node: NodeObject) -> Here:
    """What counts of the node that decides."""
    return Here(node.metadata.name, node.metadata.labels.get(ZONE, ""))


def node_of(node: NodeObject) -> Node:
    """A node with the addresses at which node ports are dialled."""
    status = node.status
    found: dict[Address, None] = {}
    for one in (status.addresses if status is not None else None) or ():
        if one.type in _NODE_ADDRESSES and (address := _address(one.address)) is not None:
            found[address] = None
    return Node(node.metadata.name, tuple(found))


def service_key_of(part: EndpointSlice) -> Key | None:
    """Whose slice it is; None: no service's."""
    name = part.metadata.labels.get(SERVICE_NAME, "")
    return (part.metadata.namespace, name) if name else None


def service_of(
    service: Service, slices: Iterable[EndpointSlice], here: Here, known: KnownEndpoints | None = None
) -> FoundService:
    """The service with those of its slices. `known`: what was read of them before."""
    if not _is_balanced(service):
        return FoundService(None)
    parts = sorted(slices, key=lambda part: part.metadata.name)
    # Of a lone slice something has changed whenever it is asked for.
    reading = _Reading(service, parts, here, known if len(parts) > 1 else None)
    fronts = tuple(reading.fronts())
    problems = tuple(dict.fromkeys(reading.problems))
    if not fronts:
        return FoundService(None, problems)
    key = WorkloadName(service.metadata.namespace, service.metadata.name)
    return FoundService(MeshService(key, (), (), (), fronts, _affinity(service)), problems)


def _is_balanced(service: Service) -> bool:
    spec = service.spec
    return (
        PROXY_NAME not in service.metadata.labels
        and spec.type != "ExternalName"
        and spec.cluster_ip not in ("", "None")
    )


def _affinity(service: Service) -> Affinity | None:
    if service.spec.session_affinity != "ClientIP":
        return None
    config = service.spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config is not None and config.client_ip is not None else None
    return Affinity(max(1, _AFFINITY_SECONDS if seconds is None else seconds))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An endpoint at one port."""

    address: ApplicationAddress
    node: str | None
    ready: bool
    serving: bool
    terminating: bool
    zones: frozenset[str]
    nodes: frozenset[str]

    @property
    def is_left(self) -> bool:
        """It ends, and still serves: better than nobody."""
        return self.serving and self.terminating


class KnownEndpoints:
    """The endpoints of slices as they were read last: of the many slices of a large service few change at once."""

    def __init__(self) -> None:
        self._of: dict[Key, tuple[EndpointSlice, dict[int, tuple[_Candidate, ...]]]] = {}

    def get(self, part: EndpointSlice, port: int) -> tuple[_Candidate, ...] | None:
        """Those of this very slice at a port; None: they have to be read."""
        found = self._of.get(part.key)
        return found[1].get(port) if found is not None and found[0] is part else None

    def put(self, part: EndpointSlice, port: int, endpoints: tuple[_Candidate, ...]) -> None:
        """They were read."""
        found = self._of.get(part.key)
        if found is None or found[0] is not part:
            found = self._of[part.key] = part, {}
        found[1][port] = endpoints

    def forget(self, key: Key) -> None:
        """There is no such slice any more."""
        self._of.pop(key, None)


class _Reading:
    """One service."""

    def __init__(
        self, service: Service, slices: Sequence[EndpointSlice], here: Here, known: KnownEndpoints | None
    ) -> None:
        self.problems: list[str] = []
        self._known = known
        self._service = service
        self._spec = service.spec
        self._here = here
        self._numbers = _numbers(slices)
        self._internal_local = self._spec.internal_traffic_policy == "Local"
        self._external_local = self._spec.external_traffic_policy == "Local"

    def fronts(self) -> Iterator[Front]:
        """In the order of families and ports."""
        cluster = self._addresses("clusterIPs", self._spec.cluster_ips or [self._spec.cluster_ip])
        external = self._addresses("externalIPs", self._spec.external_ips or ())
        balancers = self._addresses("status.loadBalancer.ingress", self._balancers())
        sources = self._source_ranges()
        room = MOST
        for version in sorted({address.version for address in cluster}):
            for port in self._spec.ports or ():
                if port.protocol == "TCP" and self._is_port(port.port):
                    candidates = self._candidates(version, port)
                    room -= len(candidates) + len(external) + len(balancers) + 1
                    if room < 0:
                        what = f"with the port {port.port} it has more than {MOST} addresses and endpoints"
                        self._note(what, "that port and what comes after it are")
                        return
                    yield self._cluster_front(version, port, candidates, of_family(cluster, version))
                    everywhere = self._everywhere(candidates)
                    dialled = (
                        (Way.LOAD_BALANCER, balancers, of_networks(sources, version)),
                        (Way.EXTERNAL, external, ()),
                    )
                    for way, addresses, clients in dialled:
                        if mine := of_family(addresses, version):
                            yield Front(way, version, mine, port.port, port.port, everywhere, sources=clients)
                    if port.node_port and self._is_port(port.node_port):
                        by_node = _by_node(candidates) if self._external_local else None
                        yield Front(Way.NODE, version, (), port.node_port, port.port, everywhere, by_node=by_node)

    def _cluster_front(
        self, version: int, port: ServicePort, candidates: Sequence[_Candidate], addresses: tuple[Address, ...]
    ) -> Front:
        everywhere = self._everywhere(candidates)
        if not self._internal_local:
            return Front(Way.CLUSTER, version, addresses, port.port, port.port, everywhere)
        mine = _addresses_of(_usable([one for one in candidates if one.node == self._here.node]))
        # kube-proxy drops what it has no endpoint for on this node, and rejects what it has none for at all.
        silent = not mine and bool(_usable(candidates))
        return Front(Way.CLUSTER, version, addresses, port.port, port.port, mine, silent)

    def _everywhere(self, candidates: Sequence[_Candidate]) -> tuple[ApplicationAddress, ...]:
        """Those of all nodes, by the hints, if all that are ready have them and one of them is for this node."""
        ready = [one for one in candidates if one.ready]
        hinted = [one for one in ready if self._here.node in one.nodes]
        if not hinted or not all(one.nodes for one in ready):
            hinted = [one for one in ready if self._here.zone in one.zones]
            if not hinted or not all(one.zones for one in ready):
                hinted = ready
        return _addresses_of(hinted or [one for one in candidates if one.is_left])

    def _candidates(self, version: int, port: ServicePort) -> list[_Candidate]:
        """All endpoints of a port."""
        # By numbers: addresses are compared and hashed in Python, and a service may have thousands of them.
        found: dict[tuple[int, int], _Candidate] = {}
        for part, number in self._numbers.get((version, port.name, port.protocol), ()):
            for one in self._endpoints(part, version, number) if self._is_port(number) else ():
                # One may be in two slices while it moves; an address may be of one that ends and of one that lives.
                place = number, int(one.address.address)
                if place not in found or not one.terminating:
                    found[place] = one
        return [found[place] for place in sorted(found)]

    def _endpoints(self, part: EndpointSlice, version: int, port: int) -> tuple[_Candidate, ...]:
        """Of one slice at one of its ports."""
        known = self._known.get(part, port) if self._known is not None else None
        if known is not None:
            return known
        before = len(self.problems)
        read = (self._candidate(part, endpoint, version, port) for endpoint in part.endpoints or ())
        found = tuple(one for one in read if one is not None)
        if self._known is not None and len(self.problems) == before:
            # What is wrong with them has to be told each time.
            self._known.put(part, port, found)
        return found

    def _candidate(self, part: EndpointSlice, endpoint: Endpoint, version: int, port: int) -> _Candidate | None:
        if not endpoint.addresses:
            return None
        text = endpoint.addresses[0]
        address = _address(text)
        if address is None or address.version != version:
            self._note(f"EndpointSlice {part.metadata.name} has the address {text[:80]!a}, which is no IPv{version}'s")
            return None
        conditions = endpoint.conditions
        ready = conditions is None or conditions.ready is not False
        serving = conditions is None or conditions.serving is not False
        terminating = conditions is not None and conditions.terminating is True
        hints = endpoint.hints
        return _Candidate(
            ApplicationAddress(address, port),
            endpoint.node_name,
            ready,
            serving,
            terminating,
            _names(hints.for_zones) if hints is not None else frozenset(),
            _names(hints.for_nodes) if hints is not None else frozenset(),
        )

    def _balancers(self) -> list[str]:
        status = self._service.status
        balancer = status.load_balancer if status is not None else None
        ingress = (balancer.ingress if balancer is not None else None) or ()
        return [one.ip for one in ingress if one.ip and one.ip_mode in (None, "VIP")]

    def _addresses(self, field: str, texts: Iterable[str]) -> tuple[Address, ...]:
        found: dict[Address, None] = {}
        for text in texts:
            if (address := _address(text)) is None:
                self._note(f"{field} has {text[:80]!a}, which is no IP address")
            elif len(found) == MOST_ADDRESSES:
                self._note(f"{field} has more than {MOST_ADDRESSES} addresses", "the others are")
                break
            else:
                found[address] = None
        return tuple(found)

    def _source_ranges(self) -> tuple[Network, ...]:
        found: list[Network] = []
        for text in self._spec.load_balancer_source_ranges or ():
            try:
                found.append(ip_network(text.strip(), strict=False))
            except ValueError:
                self._note(f"loadBalancerSourceRanges has {text[:80]!a}, which is no range of addresses")
        return tuple(found)

    def _is_port(self, number: int) -> bool:
        if 0 < number < 65536:
            return True
        self._note(f"{number} is no port")
        return False

    def _note(self, what: str, gone: str = "it is") -> None:
        meta = self._service.metadata
        self.problems.append(f"service {meta.namespace}/{meta.name}: {what}; {gone} passed over")


def of_family(addresses: Iterable[Address], version: int) -> tuple[Address, ...]:
    """Those of one family."""
    return tuple(address for address in addresses if address.version == version)


def of_networks(networks: Iterable[Network], version: int) -> tuple[Network, ...]:
    """The same of ranges; none if one of them has every address."""
    found = tuple(network for network in networks if network.version == version)
    return () if any(network.prefixlen == 0 for network in found) else found


def _numbers(slices: Iterable[EndpointSlice]) -> dict[tuple[int, str, str], list[tuple[EndpointSlice, int]]]:
    """By family, name and protocol of a service's port the slices that have it, each with its number there. (A service
    and its slices may have thousands of ports each.)"""
    found: dict[tuple[int, str, str], list[tuple[EndpointSlice, int]]] = {}
    for part in slices:
        if (version := _FAMILIES.get(part.address_type)) is None:
            continue
        for one in part.ports or ():
            if one.port:
                found.setdefault((version, one.name or "", one.protocol or "TCP"), []).append((part, one.port))
    return found


def _usable(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """Those that are ready; if none is, those that end and still serve."""
    candidates = list(candidates)
    return [one for one in candidates if one.ready] or [one for one in candidates if one.is_left]


def _by_node(candidates: Iterable[_Candidate]) -> tuple[NodeEndpoints, ...]:
    groups: dict[str, list[_Candidate]] = {}
    for one in candidates:
        if one.node is not None:
            groups.setdefault(one.node, []).append(one)
    found = ((name, _addresses_of(_usable(group))) for name, group in sorted(groups.items()))
    return tuple(NodeEndpoints(name, addresses) for name, addresses in found if addresses)


def _addresses_of(candidates: Iterable[_Candidate]) -> tuple[ApplicationAddress, ...]:
    return tuple(one.address for one in candidates)


def _names(hints: Iterable[Hint] | None) -> frozenset[str]:
    return frozenset(hint.name for hint in hints or ())


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None
