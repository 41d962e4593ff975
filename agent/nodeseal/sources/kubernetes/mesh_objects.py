"""The objects that nodes publish in Kubernetes, as they are written and read. Pure.

Two kinds, both of the whole cluster. `MeshEndpoints` has workloads that one node has enrolled, a few in each (see
nodeseal.sources.kubernetes.shards). `MeshNode` has the name of its node, and says how that is and whom it trusts; that
it goes on being written is the node's sign of life. deploy/chart has their schemas.

What is read is hostile until it is parsed. An object that cannot be read is an error as a whole: nothing of it counts.
Fields that are not known are passed over, missing ones have defaults: agents of two versions read each other's objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from sys import intern
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct, field
from msgspec.structs import force_setattr

from nodeseal.kubernetes.objects import Key, KubernetesObject, Resource
from nodeseal.mesh.address import Address, parse_address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.node import Node
from nodeseal.mesh.spiffe import check_segment
from nodeseal.mesh.trust import DIGEST_LENGTH, Need, Trust
from nodeseal.mesh.workload import MOST_ADDRESSES, Mode, Phase, Workload, WorkloadName

GROUP, VERSION = "nodeseal.io", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

MOST_WORKLOADS = 16
"""That one object may have."""
MOST_OBJECTS = 1000
"""That one node may have: their numbers are 0 to 999."""
MOST_PROBLEMS = 8
"""That a MeshNode tells in full."""
MOST_ANCHORS = 64
MOST_NODE_ADDRESSES = 16
_MOST_EXCLUDED = 64
_NAME_MAX = 253
NODE_NAME_MAX = _NAME_MAX - len("-999")
"""The names of a node's objects are made of its own."""

_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=_NAME_MAX)]
_AddressText: TypeAlias = Annotated[str, Meta(min_length=2, max_length=45)]
_NetworkText: TypeAlias = Annotated[str, Meta(min_length=2, max_length=49)]
_Ports: TypeAlias = Annotated[list[int | Annotated[str, Meta(max_length=11)]], Meta(max_length=_MOST_EXCLUDED)]
_Networks: TypeAlias = Annotated[list[_NetworkText], Meta(max_length=_MOST_EXCLUDED)]
_Digest: TypeAlias = Annotated[
    str, Meta(min_length=DIGEST_LENGTH, max_length=DIGEST_LENGTH, pattern=f"^[0-9a-f]{{{DIGEST_LENGTH}}}$")
]
_Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 53)]


class Owner(Struct, frozen=True, rename="camel"):
    """Of meta/v1 OwnerReference what an agent sets."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""


class OwnMeta(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Of ObjectMeta what a writer needs beside."""

    name: str
    uid: str = ""
    resource_version: str = ""
    owner_references: list[Owner] = field(default_factory=list)


class ExcludedInbound(Struct, frozen=True, omit_defaults=True):
    """What passes by towards the workload."""

    ports: _Ports = field(default_factory=list)
    networks: _Networks = field(name="from", default_factory=list)


class ExcludedOutbound(Struct, frozen=True, omit_defaults=True):
    """What it dials and passes by."""

    ports: _Ports = field(default_factory=list)
    networks: _Networks = field(name="to", default_factory=list)


class Exclude(Struct, frozen=True, omit_defaults=True):
    """Of both directions."""

    inbound: ExcludedInbound = ExcludedInbound()
    outbound: ExcludedOutbound = ExcludedOutbound()


class Host(Struct, frozen=True):
    """Of processes of the node: where they are reached at the addresses that they share."""

    ports: _Ports


class PublishedWorkload(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What others need to know of one workload. What is as usual is left out."""

    namespace: _Name
    name: _Name
    service_account: _Name
    addresses: Annotated[list[_AddressText], Meta(min_length=1, max_length=MOST_ADDRESSES)]
    mode: Annotated[str, Meta(max_length=32)] = Mode.PERMISSIVE.value
    """For people. One that is not known counts as the usual one: it changes nothing for peers."""
    exclude: Exclude | None = None
    host: Host | None = None

    @property
    def key(self) -> WorkloadName:
        """Its name in a mesh."""
        return WorkloadName(self.namespace, self.name)


class EndpointsSpec(Struct, frozen=True):
    """What a node has enrolled, or a part of it."""

    node: _Name
    workloads: Annotated[list[PublishedWorkload], Meta(max_length=MOST_WORKLOADS)]


class NamedMeta(Struct, frozen=True, gc=False):
    """Of ObjectMeta what names an object."""

    name: str
    namespace: str = ""
    """Always empty: they are of the whole cluster."""


class MeshEndpoints(KubernetesObject, frozen=True):
    """As readers have it. `spec`: as it came: a cluster has thousands, each is looked into once, and looked into it
    would take four times the memory."""

    metadata: NamedMeta  # type: ignore[assignment] # thousands: no labels, no annotations
    spec: Raw

    def __post_init__(self) -> None:
        # Else it would keep the page of the list that it came in.
        force_setattr(self, "spec", self.spec.copy())

    def looked_into(self) -> EndpointsSpec:
        """Raises ObjectError."""
        try:
            return _decode_spec(self.spec)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ObjectError(f"MeshEndpoints {self.metadata.name}: {' '.join(str(error).split())}") from None


_decode_spec = msgspec.json.Decoder(EndpointsSpec).decode


class HolderSpec(Struct, frozen=True, rename="camel"):
    """The agent that a node belongs to: the only one of that run directory, whose lock it holds, on that machine."""

    boot: Annotated[str, Meta(min_length=1, max_length=64)]
    run_directory: Annotated[str, Meta(min_length=1, max_length=4096)]


class NeedSpec(Struct, frozen=True, omit_defaults=True):
    """See nodeseal.mesh.trust.Need."""

    anchor: _Digest
    until: _Count = 0
    connections: _Count = 0


class TrustSpec(Struct, frozen=True, omit_defaults=True):
    """See nodeseal.mesh.trust.Trust."""

    issuer: _Digest
    anchors: Annotated[list[_Digest], Meta(min_length=1, max_length=MOST_ANCHORS)]
    needs: Annotated[list[NeedSpec], Meta(max_length=MOST_ANCHORS)] | None = None


class ProblemSpec(Struct, frozen=True, omit_defaults=True):
    """See nodeseal.mesh.problem.Problem."""

    word: str
    text: str
    remedy: str = ""
    about: str = ""


class Condition(Struct, frozen=True, rename="camel"):
    """As all of Kubernetes' objects have them."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str


class NodeStatus(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What an agent says of its node."""

    agent_version: Annotated[str, Meta(max_length=64)]
    holder: HolderSpec | None = None
    renew_time: Annotated[str, Meta(max_length=32)] = ""
    enrolled: _Count | None = None
    wanted: _Count | None = None
    """None: it has not said yet."""
    summary: str = ""
    """The words of its problems."""
    problems: Annotated[list[ProblemSpec], Meta(max_length=MOST_PROBLEMS)] = field(default_factory=list)
    trust: TrustSpec | None = None
    addresses: Annotated[list[_AddressText], Meta(max_length=MOST_NODE_ADDRESSES)] = field(default_factory=list)
    """Its Node's, where node ports are dialled."""
    conditions: Annotated[list[Condition], Meta(max_length=16)] = field(default_factory=list)


class MeshNode(KubernetesObject, frozen=True):
    """As readers have it."""

    status: NodeStatus


MESH_ENDPOINTS = Resource(GROUP, VERSION, "meshendpoints", MeshEndpoints)
MESH_NODES = Resource(GROUP, VERSION, "meshnodes", MeshNode)


_MODES = {mode.value: mode for mode in Mode}
_NOBODY_S = {
    4: tuple(map(ip_network, ("127.0.0.0/8", "224.0.0.0/4", "0.0.0.0/8", "169.254.0.0/16"))),
    6: tuple(map(ip_network, ("::/127", "ff00::/8", "fe80::/10"))),
}
"""Loopback, multicast, unspecified, link-local: addresses of no workload, and of no node that others could dial."""


class ObjectError(ValueError):
    """An object is not as its kind is. One line: which, and what."""


@dataclass(frozen=True, slots=True)
class Published:
    """What one object says."""

    node: str
    workloads: tuple[Workload, ...]


def object_name(node: str, number: int) -> str:
    """Of one of a node's MeshEndpoints. The last dash stands before the number, so that no node has another's."""
    return f"{node}-{number}"


def number_of(name: str, node: str) -> int | None:
    """The reverse; None: it is no name of an object of this node."""
    head, dash, number = name.rpartition("-")
    right = dash and head == node and number.isascii() and number.isdigit() and len(number) <= len("999")
    return int(number) if right else None


def write_workload(workload: Workload) -> PublishedWorkload:
    """As it is published."""
    exclude, host = workload.exclude, workload.host
    return PublishedWorkload(
        namespace=workload.key.namespace,
        name=workload.key.name,
        service_account=workload.service_account,
        addresses=[str(address) for address in workload.addresses],
        mode=workload.mode.value,
        exclude=_write_exclusions(exclude) if exclude else None,
        host=Host(_write_ports(host.ports)) if host is not None else None,
    )


def read_endpoints(found: MeshEndpoints) -> Published:
    """The workloads in it, ENROLLED. Raises ObjectError."""
    where = f"MeshEndpoints {found.metadata.name}"
    spec = found.looked_into()
    node = spec.node
    if number_of(found.metadata.name, node) is None:
        raise ObjectError(f"{where}: it is of the node {node[:80]!a}, whose objects have other names")
    try:
        workloads = tuple(_read_workload(one, node) for one in spec.workloads)
    except ValueError as error:
        raise ObjectError(f"{where}: {' '.join(str(error).split())}") from None
    if len({one.key for one in workloads}) != len(workloads):
        raise ObjectError(f"{where}: a workload is in it twice")
    return Published(node, workloads)


def read_node(found: MeshNode) -> Node:
    """The node with the addresses that its agent says it has. Raises ObjectError."""
    try:
        return Node(found.metadata.name, tuple(dict.fromkeys(map(_read_address, found.status.addresses))))
    except ValueError as error:
        raise ObjectError(f"MeshNode {found.metadata.name}: {error}") from None


def read_trust(status: NodeStatus) -> Trust | None:
    """None: it says nothing of it."""
    trust = status.trust
    if trust is None:
        return None
    needs = None
    if trust.needs is not None:
        needs = tuple(sorted(Need(one.anchor, one.until, one.connections) for one in trust.needs))
    return Trust(frozenset(trust.anchors), trust.issuer, needs)


def write_trust(trust: Trust | None) -> TrustSpec | None:
    """The reverse; no more than readers take, and the anchor by which the node issues is among them."""
    if trust is None:
        return None
    own = sorted(trust.anchors & {trust.issuer})
    others = sorted(trust.anchors - {trust.issuer})
    needs = None
    if trust.needs is not None:
        needs = [NeedSpec(one.anchor, one.until, one.connections) for one in trust.needs[:MOST_ANCHORS]]
    return TrustSpec(trust.issuer, sorted([*own, *others[: MOST_ANCHORS - len(own)]]), needs)


def own_key(name: str) -> Key:
    """Of an object of the whole cluster."""
    return "", name


def _read_address(text: str) -> Address:
    address = parse_address(text)
    if _is_nobodys(address):
        raise ValueError(f"{address} is no address of a node")
    return address


def _is_nobodys(address: Address) -> bool:
    return any(address in network for network in _NOBODY_S[address.version])


def _read_workload(found: PublishedWorkload, node: str) -> Workload:
    check_segment(found.namespace, "namespace")
    check_segment(found.name, "name")
    check_segment(found.service_account, "service account")
    addresses = tuple(map(parse_address, found.addresses))
    if len(addresses) > 1 and len(set(addresses)) != len(addresses):
        raise ValueError(f"{found.key}: an address is in it twice")
    for address in addresses:
        if _is_nobodys(address):
            raise ValueError(f"{found.key}: {address} is no address of a workload")
    return Workload(
        key=WorkloadName(intern(found.namespace), found.name),
        service_account=intern(found.service_account),
        node=intern(node),
        addresses=addresses,
        netns=None,
        wanted=True,
        mode=_MODES.get(found.mode, Mode.PERMISSIVE),
        phase=Phase.ENROLLED,
        exclude=NO_EXCLUSIONS if found.exclude is None else _read_exclusions(found.exclude),
        host=HostPlace("", tuple(_read_ports(found.host.ports))) if found.host is not None else None,
    )


def _write_exclusions(exclude: Exclusions) -> Exclude:
    inbound, outbound = exclude.inbound, exclude.outbound
    return Exclude(
        ExcludedInbound(_write_ports(inbound.ports), [str(one) for one in inbound.networks]),
        ExcludedOutbound(_write_ports(outbound.ports), [str(one) for one in outbound.networks]),
    )


def _read_exclusions(found: Exclude) -> Exclusions:
    def direction(one: ExcludedInbound | ExcludedOutbound) -> Excluded:
        return Excluded(tuple(_read_ports(one.ports)), tuple(map(ip_network, one.networks)))

    read = Exclusions(direction(found.inbound), direction(found.outbound))
    return read if read else NO_EXCLUSIONS


def _write_ports(ports: Iterable[PortRange]) -> list[int | str]:
    return [one.first if one.first == one.last else str(one) for one in ports]


def _read_ports(found: Iterable[int | str]) -> Iterator[PortRange]:
    for one in found:
        first, _, last = one.partition("-") if isinstance(one, str) else (str(one), "", "")
        texts = (first, last or first)
        if not all(text.isascii() and text.isdigit() for text in texts):
            raise ValueError(f"{one!a} is no port and no range of ports")
        low, high = map(int, texts)
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"{one!a} is no port and no range of ports")
        yield PortRange(low, high)
