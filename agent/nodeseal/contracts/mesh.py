"""The mesh state on its way between agent and core: a type for each kind of objects, and differences of all kinds.

    {"trust_domain": "example.org",
     "workloads": [WorkloadMessage, ...], "removed_workloads": ["namespace/name", ...],
     "services": [ServiceMessage, ...], "removed_services": ["namespace/name", ...],
     "nodes": [NodeMessage, ...], "removed_nodes": ["name", ...],
     "trust_anchors": [TrustAnchorMessage, ...], "removed_trust_anchors": ["fingerprint", ...]}

A kind (nodeseal.mesh.model.KINDS) of which nothing is put in or removed is left out, and so are fields with their
defaults. Agent and core may be of different versions: kinds and fields that one does not know are passed over. A field
that is added later has a default.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from sys import intern
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from nodeseal.mesh.address import Address, ApplicationAddress, parse_address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.federated import BundleEndpoint, Federated, Profile, read_domain
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.kinds import Kind
from nodeseal.mesh.limits import UNCHANGED, LimitChanges
from nodeseal.mesh.model import (
    KINDS,
    Connect,
    MeshDifference,
    MeshError,
    Mode,
    OnFailure,
    Phase,
    Service,
    ServicePort,
    TrustAnchor,
    Workload,
    WorkloadName,
)
from nodeseal.mesh.node import Node
from nodeseal.mesh.service import Affinity, Front, NodeEndpoints, Way
from nodeseal.mesh.spiffe import parse_identity, split
from nodeseal.mesh.workload import MOST_ADDRESSES

Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
Limit: TypeAlias = Annotated[int, Meta(ge=0)]


class ExcludedMessage(Struct, frozen=True, gc=False):
    """What is excluded in one direction."""

    # [first, last] of each range.
    ports: list[tuple[Port, Port]]
    # "10.0.0.0/8"
    networks: list[str]


class ExclusionsMessage(Struct, frozen=True, gc=False):
    """What of a workload's traffic passes by nodeseal."""

    inbound: ExcludedMessage
    outbound: ExcludedMessage


class LimitsMessage(Struct, frozen=True, gc=False, omit_defaults=True):
    """Those of a workload's limits that are not its node's."""

    connections: Limit | None = None
    memory: Limit | None = None
    new_connections: Limit | None = None


class HostMessage(Struct, frozen=True, gc=False):
    """Where a process of the node is found."""

    cgroup: str
    # [first, last] of each range.
    ports: list[tuple[Port, Port]]


class WorkloadMessage(Struct, frozen=True, gc=False, omit_defaults=True):
    """A workload."""

    namespace: str
    name: str
    service_account: str
    node: str
    # The first of each family is its primary. For cores of older protocols see nodeseal.mesh.former.
    addresses: Annotated[list[str], Meta(min_length=1, max_length=MOST_ADDRESSES)]
    netns: str | None
    wanted: bool
    mode: Mode
    phase: Phase
    exclude: ExclusionsMessage | None = None
    on_failure: OnFailure = OnFailure.CLOSED
    limits: LimitsMessage | None = None
    host: HostMessage | None = None
    connect: Connect | None = None
    # Of its identity, if it is not the mesh's own. Cores whose protocol is older than 7 pass it over.
    trust_domain: str | None = None
    # Its whole identity, if it is of another trust domain. Cores of former versions pass it over: they expect another
    # one of it, and refuse.
    spiffe_id: str | None = None


Version: TypeAlias = Literal[4, 6]
EndpointsMessage: TypeAlias = list[tuple[Port, list[str]]]
"""[port, the addresses at which it is one] of each port."""


class FrontMessage(Struct, frozen=True, gc=False, omit_defaults=True):
    """Where a port of a service is dialled in one way, and where that leads."""

    way: Way
    version: Version
    addresses: list[str]
    port: Port
    service_port: Port
    # Which of the service's `lists`.
    endpoints: Annotated[int, Meta(ge=0)]
    silent: bool = False
    # "10.0.0.0/8"
    sources: list[str] = []
    # [name of a node, number in `lists`] of each.
    by_node: list[tuple[str, Annotated[int, Meta(ge=0)]]] | None = None


class ServiceMessage(Struct, frozen=True, gc=False, omit_defaults=True):
    """A service. For cores of older protocols, which know no `fronts`, see nodeseal.mesh.former."""

    namespace: str
    name: str
    # One, or one of each family; none if there are fronts.
    addresses: Annotated[list[str], Meta(max_length=2)]
    # [port, target port] of each.
    ports: list[tuple[Port, Port]]
    # "namespace/name" of each.
    endpoints: list[str]
    fronts: list[FrontMessage] = []
    # Endpoints of fronts: most of them lead to the same.
    lists: list[EndpointsMessage] = []
    # Seconds for which a client keeps its endpoint; 0: it does not.
    affinity: Annotated[int, Meta(ge=0)] = 0


class NodeMessage(Struct, frozen=True, gc=False):
    """A node of the mesh."""

    name: Annotated[str, Meta(min_length=1)]
    addresses: list[str]


class TrustAnchorMessage(Struct, frozen=True, gc=False):
    """A trust anchor. A core keeps it for the agent that may come after this one; it verifies by what TrustBundle told
    it."""

    pem: str


class BundleEndpointMessage(Struct, frozen=True, gc=False):
    """Where agents fetch a bundle; cores do not."""

    url: str
    profile: Profile
    spiffe_id: str = ""
    ca_file: str = ""


class FederatedMessage(Struct, frozen=True, gc=False):
    """A trust domain that the mesh is federated with. A core decides by its name, and verifies by what
    TrustBundles told it."""

    trust_domain: str
    bundle: str = ""
    bundle_file: str = ""
    endpoint: BundleEndpointMessage | None = None
    from_workload_api: bool = False


_T = TypeVar("_T")
_M = TypeVar("_M", bound=Struct)


@dataclass(frozen=True, slots=True)
class MessageOf(Generic[_T, _M]):
    """How objects of one kind travel."""

    type: type[_M]
    write: Callable[[_T], _M]
    read: Callable[[_M], _T]
    """The reverse of `write`. Raises ValueError."""


def encode_difference(difference: MeshDifference) -> Raw:
    """The difference as JSON, to stand in a message as it is."""
    message: dict[str, object] = {"trust_domain": difference.trust_domain}
    for name in _travelling():
        if items := difference.put.get(name):
            write = MESSAGES[name].write
            message[name] = [write(item) for item in items]
        if keys := difference.removed.get(name):
            message[_removed(name)] = [str(key) for key in keys]
    return Raw(_encode(message))


def decode_difference(data: Raw | bytes) -> MeshDifference:
    """The reverse. Raises MeshError for anything that encode_difference does not make."""
    where = ""
    put: dict[str, tuple[Any, ...]] = {}
    removed: dict[str, tuple[Any, ...]] = {}
    try:
        fields = _decode_fields(data)
        if "trust_domain" not in fields:
            raise MeshError("'trust_domain' is missing")
        where = "trust_domain: "
        trust_domain = _decode_text(fields["trust_domain"])
        for name, kind in _travelling().items():
            if name in fields:
                where, message = f"{name}: ", MESSAGES[name]
                items = msgspec.json.decode(fields[name], type=list[message.type])  # type: ignore[name-defined]
                put[name] = tuple(map(message.read, items))
            if (keys := _removed(name)) in fields:
                where = f"{keys}: "
                removed[name] = tuple(map(kind.read_key, _decode_texts(fields[keys])))
    except (ValueError, RecursionError) as error:
        raise MeshError(f"mesh on the wire: {where}{error}") from None
    return MeshDifference(trust_domain, put, removed)


def _travelling() -> dict[str, Kind[Any, Any]]:
    return {name: kind for name, kind in KINDS.items() if kind.for_cores}


_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode


def _removed(name: str) -> str:
    return f"removed_{name}"


def _write_workload(workload: Workload) -> WorkloadMessage:
    limits, host = workload.limits, workload.host
    return WorkloadMessage(
        workload.key.namespace,
        workload.key.name,
        workload.service_account,
        workload.node,
        _write_addresses(workload.addresses),
        workload.netns,
        workload.wanted,
        workload.mode,
        workload.phase,
        _write_exclusions(workload.exclude) if workload.exclude is not NO_EXCLUSIONS else None,
        workload.on_failure,
        LimitsMessage(**limits.as_dict()) if limits is not UNCHANGED else None,
        HostMessage(host.cgroup, _write_ports(host.ports)) if host is not None else None,
        workload.connect,
        workload.trust_domain,
        str(workload.spiffe_id) if workload.spiffe_id is not None else None,
    )


def _read_workload(message: WorkloadMessage) -> Workload:
    limits, host = message.limits, message.host
    # Few different names, repeated by every workload: one object each keeps the core process small.
    return Workload(
        WorkloadName(intern(message.namespace), message.name),
        intern(message.service_account),
        intern(message.node),
        _read_own_addresses(message.addresses),
        message.netns,
        message.wanted,
        message.mode,
        message.phase,
        NO_EXCLUSIONS if message.exclude is None else _read_exclusions(message.exclude),
        message.on_failure,
        UNCHANGED if limits is None else LimitChanges(limits.connections, limits.memory, limits.new_connections),
        HostPlace(host.cgroup, _read_ports(host.ports)) if host is not None else None,
        message.connect,
        message.trust_domain,
        parse_identity(message.spiffe_id) if message.spiffe_id is not None else None,
    )


def _write_service(service: Service) -> ServiceMessage:
    numbers: dict[tuple[ApplicationAddress, ...], int] = {}
    fronts = [_write_front(front, numbers) for front in service.fronts]
    return ServiceMessage(
        service.key.namespace,
        service.key.name,
        _write_addresses(service.addresses),
        [(pair.port, pair.target_port) for pair in service.ports],
        [str(name) for name in service.endpoints],
        fronts,
        list(map(_write_endpoints, numbers)),
        service.affinity.seconds if service.affinity is not None else 0,
    )


def _read_service(message: ServiceMessage) -> Service:
    lists = list(map(_read_endpoints, message.lists))
    if not message.addresses and not message.fronts:
        raise MeshError("addresses has nothing, and there are no fronts")
    return Service(
        WorkloadName(intern(message.namespace), message.name),
        _read_addresses(message.addresses),
        tuple(ServicePort(port, target) for port, target in message.ports),
        tuple(map(WorkloadName.parse, message.endpoints)),
        tuple(_read_front(front, lists) for front in message.fronts),
        Affinity(message.affinity) if message.affinity else None,
    )


def _write_front(front: Front, numbers: dict[tuple[ApplicationAddress, ...], int]) -> FrontMessage:
    def number(endpoints: tuple[ApplicationAddress, ...]) -> int:
        return numbers.setdefault(endpoints, len(numbers))

    return FrontMessage(
        front.way,
        6 if front.version == 6 else 4,
        _write_addresses(front.addresses),
        front.port,
        front.service_port,
        number(front.endpoints),
        front.silent,
        [str(network) for network in front.sources],
        [(one.node, number(one.endpoints)) for one in front.by_node] if front.by_node is not None else None,
    )


def _read_front(message: FrontMessage, lists: list[tuple[ApplicationAddress, ...]]) -> Front:
    def of(number: int) -> tuple[ApplicationAddress, ...]:
        if number >= len(lists):
            raise MeshError(f"fronts has the list {number}, which is none of {len(lists)}")
        return lists[number]

    return Front(
        message.way,
        message.version,
        tuple(map(parse_address, message.addresses)),
        message.port,
        message.service_port,
        of(message.endpoints),
        message.silent,
        tuple(map(ip_network, message.sources)),
        tuple(NodeEndpoints(intern(node), of(number)) for node, number in message.by_node)
        if message.by_node is not None
        else None,
    )


def _write_endpoints(endpoints: tuple[ApplicationAddress, ...]) -> EndpointsMessage:
    ports: dict[int, list[str]] = {}
    for endpoint in endpoints:
        ports.setdefault(endpoint.port, []).append(str(endpoint.address))
    return list(ports.items())


def _read_endpoints(message: EndpointsMessage) -> tuple[ApplicationAddress, ...]:
    return tuple(ApplicationAddress(parse_address(text), port) for port, texts in message for text in texts)


def _write_node(node: Node) -> NodeMessage:
    return NodeMessage(node.key, _write_addresses(node.addresses))


def _read_node(message: NodeMessage) -> Node:
    return Node(intern(message.name), tuple(map(parse_address, message.addresses)))


def _write_addresses(addresses: Iterable[Address]) -> list[str]:
    return [str(address) for address in addresses]


def _read_own_addresses(texts: list[str]) -> tuple[Address, ...]:
    if len(texts) == 1:
        return (parse_address(texts[0]),)
    addresses = tuple(map(parse_address, texts))
    if len(set(addresses)) != len(addresses):
        raise MeshError(f"addresses has {texts!a}, one of them twice")
    return addresses


def _read_addresses(texts: list[str]) -> tuple[Address, ...]:
    if len(texts) == 1:
        return (parse_address(texts[0]),)
    addresses = tuple(map(parse_address, texts))
    if len({address.version for address in addresses}) != len(addresses):
        raise MeshError(f"addresses has {texts!a}, not one or two of different families")
    return addresses


def _write_ports(ports: Iterable[PortRange]) -> list[tuple[int, int]]:
    return [(item.first, item.last) for item in ports]


def _read_ports(pairs: Iterable[tuple[int, int]]) -> tuple[PortRange, ...]:
    return tuple(PortRange(first, last) for first, last in pairs)


def _write_exclusions(exclude: Exclusions) -> ExclusionsMessage | None:
    def direction(excluded: Excluded) -> ExcludedMessage:
        return ExcludedMessage(_write_ports(excluded.ports), [str(network) for network in excluded.networks])

    return ExclusionsMessage(direction(exclude.inbound), direction(exclude.outbound)) if exclude else None


def _read_exclusions(message: ExclusionsMessage) -> Exclusions:
    def direction(excluded: ExcludedMessage) -> Excluded:
        return Excluded(_read_ports(excluded.ports), tuple(map(ip_network, excluded.networks)))

    return Exclusions(direction(message.inbound), direction(message.outbound))


def _write_federated(one: Federated) -> FederatedMessage:
    at = one.endpoint
    endpoint = BundleEndpointMessage(at.url, at.profile, at.spiffe_id, at.ca_file) if at is not None else None
    return FederatedMessage(one.key, one.bundle, one.bundle_file, endpoint, one.from_workload_api)


def _read_federated(message: FederatedMessage) -> Federated:
    at = message.endpoint
    if at is not None and at.spiffe_id:
        split(at.spiffe_id)
    return Federated(
        read_domain(message.trust_domain),
        message.bundle,
        message.bundle_file,
        BundleEndpoint(at.url, at.profile, at.spiffe_id, at.ca_file) if at is not None else None,
        message.from_workload_api,
    )


MESSAGES: dict[str, MessageOf[Any, Any]] = {
    "workloads": MessageOf(WorkloadMessage, _write_workload, _read_workload),
    "services": MessageOf(ServiceMessage, _write_service, _read_service),
    "trust_anchors": MessageOf(
        TrustAnchorMessage, lambda anchor: TrustAnchorMessage(anchor.pem), lambda message: TrustAnchor.read(message.pem)
    ),
    "federated": MessageOf(
        FederatedMessage,
        _write_federated,
        _read_federated,
    ),
    "nodes": MessageOf(NodeMessage, _write_node, _read_node),
}
"""How each kind that is for cores travels, by its name in nodeseal.mesh.model.KINDS."""
