"""The mesh model: workloads, services, and which of them are enrolled. Immutable; a change makes a new model.

A model knows phases from two sides. For workloads of other nodes there are two: ENROLLED (their node has published
them) and ABSENT. For the workloads of its own node the agent puts in all four with `Mesh.with_phases`.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Exclusions
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.limits import UNCHANGED, LimitChanges
from nodeseal.mesh.spiffe import SpiffeId, SpiffeIdError, check_trust_domain


class MeshError(ValueError):
    """Workloads and services that cannot be in one mesh together."""


class WorkloadName(NamedTuple):
    """The key of a workload or a service. A tuple, because models with many workloads hash millions of them."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "namespace/name". Raises MeshError."""
        namespace, slash, name = text.partition("/")
        if not slash or not namespace or not name or "/" in name:
            raise MeshError(f"{text[:80]!a} is not of the form namespace/name")
        return cls(namespace, name)


class Mode(StrEnum):
    """What a workload does with plaintext from those who could not have used a tunnel."""

    PERMISSIVE = "permissive"
    STRICT = "strict"


class OnFailure(StrEnum):
    """What becomes of a captured workload's new connections while neither an agent nor a core of its node runs."""

    CLOSED = "closed"
    """They wait, and fail in the end."""
    OPEN = "open"
    """They go direct, as if it were not enrolled. Enrolled peers refuse them all the same."""


class Phase(StrEnum):
    """How far a workload is on its way into the mesh or out of it."""

    ABSENT = "absent"
    """Not enrolled."""
    JOINING = "joining"
    """Captured and published; other nodes may not have seen it yet, so their plaintext is still accepted."""
    ENROLLED = "enrolled"
    """Everybody has had time to see it: plaintext from enrolled workloads is refused."""
    LEAVING = "leaving"
    """Withdrawn; still captured and still accepting tunnels, so that other nodes have time to see it."""


# Every decision about a tunnel names an identity, and checking one anew costs more than the rest of the decision.
_identity = functools.lru_cache(maxsize=1024)(SpiffeId)

_ACCEPTS_TUNNELS = frozenset({Phase.JOINING, Phase.ENROLLED})


@dataclass(frozen=True, slots=True)
class Workload:
    """One application instance, with addresses of its own unless it is one of the node's own processes (`host`)."""

    key: WorkloadName
    service_account: str
    node: str
    addresses: tuple[Address, ...]
    """One or two, of each family at most one."""
    netns: str | None
    """Path of its network namespace, or a name under /run/netns. Needed on its own node only."""
    wanted: bool
    """The mesh state asks for it to be enrolled. Whether it is, says `phase`."""
    mode: Mode
    phase: Phase = Phase.ABSENT
    exclude: Exclusions = NO_EXCLUSIONS
    on_failure: OnFailure = OnFailure.CLOSED
    limits: LimitChanges = UNCHANGED
    """What it may take of its node's core, where that is not what the node gives to all."""
    host: HostPlace | None = None
    """For a process of the node: it shares the node's address with others. None: it has a network namespace."""

    @property
    def own_addresses(self) -> tuple[Address, ...]:
        """Those that stand for it alone."""
        return self.addresses if self.host is None else ()

    @property
    def address(self) -> Address:
        """The first of its addresses."""
        return self.addresses[0]

    def address_like(self, other: Address) -> Address:
        """Its address of the family of `other`; the one it has if there is none."""
        addresses = self.addresses
        return addresses[-1] if addresses[0].version != other.version else addresses[0]

    @property
    def accepts_tunnels(self) -> bool:
        """New connections to it go through a tunnel. (While it is LEAVING it takes tunnels, but none should begin.)"""
        return self.phase in _ACCEPTS_TUNNELS

    def in_phase(self, phase: Phase) -> "Workload":
        """The same workload in another phase. (dataclasses.replace takes four times as long.)"""
        return Workload(
            self.key,
            self.service_account,
            self.node,
            self.addresses,
            self.netns,
            self.wanted,
            self.mode,
            phase,
            self.exclude,
            self.on_failure,
            self.limits,
            self.host,
        )

    def identity(self, trust_domain: str) -> SpiffeId:
        """Its SPIFFE id in that trust domain. Raises SpiffeIdError, never for a workload that is in a Mesh."""
        return _identity(trust_domain, self.key.namespace, self.service_account)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service's virtual address and the port its endpoints listen on, both 1 to 65535."""

    port: int
    target_port: int


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual address, or one of each family, that stands for any of its endpoints."""

    key: WorkloadName
    addresses: tuple[Address, ...]
    ports: tuple[ServicePort, ...]
    endpoints: tuple[WorkloadName, ...]

    @property
    def own_addresses(self) -> tuple[Address, ...]:
        """Those that stand for it alone: all."""
        return self.addresses

    def target_port(self, port: int) -> int | None:
        """The endpoints' port behind `port` of the virtual address; None if the service has no such port."""
        for pair in self.ports:
            if pair.port == port:
                return pair.target_port
        return None


@dataclass(frozen=True, slots=True)
class MeshDifference:
    """What turns one model into another. `workloads` and `services` are to be put in, whether new or changed."""

    trust_domain: str
    workloads: tuple[Workload, ...] = ()
    removed_workloads: tuple[WorkloadName, ...] = ()
    services: tuple[Service, ...] = ()
    removed_services: tuple[WorkloadName, ...] = ()

    @property
    def size(self) -> int:
        """Number of objects put in or removed. 0 still may change the trust domain."""
        return len(self.workloads) + len(self.removed_workloads) + len(self.services) + len(self.removed_services)

    def parts(self, size: int) -> "list[MeshDifference]":
        """The same in pieces of at most `size` objects, at least one piece; `joined` puts them together again."""
        lists = (self.workloads, self.removed_workloads, self.services, self.removed_services)
        pieces: list[MeshDifference] = []
        for number, items in enumerate(lists):
            for first in range(0, len(items), size):
                piece: list[tuple[Any, ...]] = [(), (), (), ()]
                piece[number] = items[first : first + size]
                pieces.append(MeshDifference(self.trust_domain, *piece))
        return pieces if self.size > size else [self]

    @classmethod
    def joined(cls, pieces: "Sequence[MeshDifference]") -> "MeshDifference":
        """One of all, which must be for the same trust domain; at least one piece."""
        return cls(
            pieces[0].trust_domain,
            tuple(workload for piece in pieces for workload in piece.workloads),
            tuple(key for piece in pieces for key in piece.removed_workloads),
            tuple(service for piece in pieces for service in piece.services),
            tuple(key for piece in pieces for key in piece.removed_services),
        )

    def to_wire(self) -> dict[str, object]:
        """A dict that json can write; see nodeseal.mesh.wire for its keys."""
        from nodeseal.mesh import wire

        return wire.difference_to_wire(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, object]) -> "MeshDifference":
        """The reverse of to_wire. Raises MeshError for anything else."""
        from nodeseal.mesh import wire

        return wire.difference_from_wire(data)


@dataclass(frozen=True, slots=True)
class Mesh:
    """All that decisions are made from. Made by `build`, `with_phases`, `apply` or `from_wire`."""

    trust_domain: str
    workloads: Mapping[WorkloadName, Workload]
    services: Mapping[WorkloadName, Service]
    by_address: Mapping[Address, Workload] = field(compare=False, repr=False)
    service_by_address: Mapping[Address, Service] = field(compare=False, repr=False)
    hosts: Mapping[Address, tuple[Workload, ...]] = field(compare=False, repr=False)
    """The nodes' own processes by the address that they share, in the order of their names."""

    @classmethod
    def build(cls, trust_domain: str, workloads: Iterable[Workload], services: Iterable[Service] = ()) -> "Mesh":
        """Makes a model with its indexes, in linear time.

        Raises MeshError for a name or an address that two of them share (processes of one node may share theirs, but no
        port), and for a name, service account or trust domain that cannot be part of a SPIFFE id. Endpoints that name
        no workload are allowed: decisions skip them.
        """
        workloads, services = list(workloads), list(services)
        by_name = {workload.key: workload for workload in workloads}
        by_address = {address: workload for workload in workloads for address in workload.own_addresses}
        if len(by_name) != len(workloads) or len(by_address) != _count_addresses(workloads):
            _complain_of_doubles("workloads", workloads)
        service_by_name = {service.key: service for service in services}
        service_by_address = {address: service for service in services for address in service.own_addresses}
        if len(service_by_name) != len(services) or len(service_by_address) != _count_addresses(services):
            _complain_of_doubles("services", services)
        _check_addresses(services, by_address)
        _check_identities(trust_domain, workloads)
        return cls(
            trust_domain,
            MappingProxyType(by_name),
            MappingProxyType(service_by_name),
            MappingProxyType(by_address),
            MappingProxyType(service_by_address),
            _hosts(workloads, by_address, service_by_address),
        )

    def host_at(self, address: Address, port: int) -> Workload | None:
        """The process of a node that is reached there."""
        return next(
            (workload for workload in self.hosts.get(address, ()) if workload.host and workload.host.has(port)), None
        )

    def with_phases(self, phases: Mapping[WorkloadName, Phase], *, like: "Mesh | None" = None) -> "Mesh":
        """The same model with these workloads in these phases; names it does not know are passed over.

        Objects that are equal to those in `like` are taken from there: models that follow each other share them.
        """
        changed = []
        for name, phase in phases.items():
            workload = self.workloads.get(name)
            if workload is None or workload.phase is phase:
                continue
            workload = workload.in_phase(phase)
            known = like.workloads.get(name) if like is not None else None
            changed.append(known if known is not None and known == workload else workload)
        if not changed:
            return self
        workloads, by_address = _copy(self.workloads), _copy(self.by_address)
        for workload in changed:
            workloads[workload.key] = workload
            for address in workload.own_addresses:
                by_address[address] = workload
        hosts = self.hosts
        if any(workload.host for workload in changed):
            hosts = _hosts(workloads.values(), by_address, self.service_by_address)
        return Mesh(
            self.trust_domain,
            MappingProxyType(workloads),
            self.services,
            MappingProxyType(by_address),
            self.service_by_address,
            hosts,
        )

    def apply(self, difference: MeshDifference) -> "Mesh":
        """The model that `difference` leads to. Raises MeshError, as `build` does, and leaves this one as it is.

        Takes time for what changes; of what stays only the indexes are copied, which for 50,000 workloads takes a
        millisecond.
        """
        workloads, by_address = self.workloads, self.by_address
        if difference.workloads or difference.removed_workloads:
            workloads, by_address = _changed(
                "workloads", workloads, by_address, difference.workloads, difference.removed_workloads
            )
        services, service_by_address = self.services, self.service_by_address
        if difference.services or difference.removed_services:
            services, service_by_address = _changed(
                "services", services, service_by_address, difference.services, difference.removed_services
            )
        for workload in difference.workloads:
            for address in workload.own_addresses:
                if (service := service_by_address.get(address)) is not None:
                    raise _shared_address(workload, service, address)
        _check_addresses(difference.services, by_address)
        same_domain = difference.trust_domain == self.trust_domain
        _check_identities(difference.trust_domain, difference.workloads if same_domain else workloads.values())
        hosts = self.hosts
        if hosts or any(workload.host for workload in difference.workloads):
            hosts = _hosts(workloads.values(), by_address, service_by_address)
        return Mesh(difference.trust_domain, workloads, services, by_address, service_by_address, hosts)

    def as_difference(self) -> MeshDifference:
        """What turns nothing into this model."""
        return MeshDifference(self.trust_domain, tuple(self.workloads.values()), (), tuple(self.services.values()))

    @classmethod
    def from_difference(cls, content: MeshDifference) -> "Mesh":
        """The reverse of as_difference. Raises MeshError, as `build` does, and when something is to be removed."""
        if content.removed_workloads or content.removed_services:
            raise MeshError("a whole mesh is expected, a difference with removals was found")
        return cls.build(content.trust_domain, content.workloads, content.services)

    def to_wire(self) -> dict[str, object]:
        """A dict that json can write: the difference from nothing to this model."""
        return self.as_difference().to_wire()

    @classmethod
    def from_wire(cls, data: Mapping[str, object]) -> "Mesh":
        """The reverse of to_wire. Raises MeshError for anything else."""
        return cls.from_difference(MeshDifference.from_wire(data))


def difference(old: Mesh, new: Mesh) -> MeshDifference:
    """What turns `old` into `new`, in linear time: `old.apply(difference(old, new)) == new`."""
    workloads, removed_workloads = _different(old.workloads, new.workloads)
    services, removed_services = _different(old.services, new.services)
    return MeshDifference(new.trust_domain, workloads, removed_workloads, services, removed_services)


class _Item(Protocol):
    @property
    def key(self) -> WorkloadName: ...
    @property
    def own_addresses(self) -> tuple[Address, ...]: ...


_T = TypeVar("_T", bound=_Item)
_K = TypeVar("_K")


def _different(
    old: Mapping[WorkloadName, _T], new: Mapping[WorkloadName, _T]
) -> tuple[tuple[_T, ...], tuple[WorkloadName, ...]]:
    """(what is new or changed, what is gone)."""
    if old is new:
        return (), ()
    # Models that follow each other share most of their objects: fields are compared only of those that they do not.
    known = old.get
    candidates = [item for key, item in new.items() if known(key) is not item]
    changed = tuple(item for item in candidates if known(item.key) != item)
    added = sum(item.key not in old for item in changed)
    if len(new) - added == len(old):
        return changed, ()
    return changed, tuple(key for key in old if key not in new)


def _changed(
    what: str,
    by_name: Mapping[WorkloadName, _T],
    by_address: Mapping[Address, _T],
    put_in: Iterable[_T],
    removed: Iterable[WorkloadName],
) -> tuple[Mapping[WorkloadName, _T], Mapping[Address, _T]]:
    names, addresses = _copy(by_name), _copy(by_address)
    # First everything that goes, then what comes: two workloads may have exchanged their addresses.
    for key in (*removed, *(item.key for item in put_in)):
        if (old := names.get(key)) is not None:
            for address in old.own_addresses:
                addresses.pop(address, None)
    for key in removed:
        names.pop(key, None)
    for item in put_in:
        names[item.key] = item
        for address in item.own_addresses:
            other = addresses.setdefault(address, item)
            if other is not item:
                raise MeshError(f"{what} {other.key} and {item.key} share the address {address}")
    return MappingProxyType(names), MappingProxyType(addresses)


def _copy(mapping: Mapping[_K, _T]) -> dict[_K, _T]:
    # dict() of a proxy goes through its items one by one, and hashes each key again; copy() does not.
    return mapping.copy() if isinstance(mapping, MappingProxyType | dict) else dict(mapping)


def _count_addresses(items: Iterable[_T]) -> int:
    return sum([len(item.own_addresses) for item in items])


def _complain_of_doubles(what: str, items: Iterable[_T]) -> None:
    by_name: dict[WorkloadName, _T] = {}
    by_address: dict[Address, _T] = {}
    for item in items:
        if by_name.setdefault(item.key, item) is not item:
            raise MeshError(f"two {what} are named {item.key}")
        for address in item.own_addresses:
            other = by_address.setdefault(address, item)
            if other is not item:
                raise MeshError(f"{what} {other.key} and {item.key} share the address {address}")


def _hosts(
    workloads: Iterable[Workload],
    by_address: Mapping[Address, Workload],
    service_by_address: Mapping[Address, Service],
) -> Mapping[Address, tuple[Workload, ...]]:
    """The nodes' own processes by address. Raises MeshError for what only one of them may have."""
    found: dict[Address, list[Workload]] = {}
    for workload in sorted((one for one in workloads if one.host is not None), key=lambda one: one.key):
        for address in workload.addresses:
            if (other := by_address.get(address)) is not None:
                raise MeshError(f"workloads {other.key} and {workload.key} share the address {address}")
            if (service := service_by_address.get(address)) is not None:
                raise _shared_address(workload, service, address)
            for other in found.setdefault(address, []):
                _check_neighbours(other, workload, address)
            found[address].append(workload)
    return MappingProxyType({address: tuple(neighbours) for address, neighbours in found.items()})


def _check_neighbours(one: Workload, other: Workload, address: Address) -> None:
    """Of two processes at one address."""
    if one.node != other.node:
        raise MeshError(f"workloads {one.key} and {other.key} of different nodes share the address {address}")
    assert one.host is not None
    assert other.host is not None
    if (port := one.host.common_port(other.host)) is not None:
        raise MeshError(f"workloads {one.key} and {other.key} share the port {port} of {address}")


def _check_addresses(services: Iterable[Service], by_address: Mapping[Address, Workload]) -> None:
    for service in services:
        for address in service.addresses:
            if (workload := by_address.get(address)) is not None:
                raise _shared_address(workload, service, address)


def _shared_address(workload: Workload, service: Service, address: Address) -> MeshError:
    return MeshError(f"workload {workload.key} and service {service.key} share the address {address}")


def _check_identities(trust_domain: str, workloads: Iterable[Workload]) -> None:
    """Makes sure that no decision can fail later for want of an identity."""
    try:
        check_trust_domain(trust_domain)
        for namespace, account in {(workload.key.namespace, workload.service_account) for workload in workloads}:
            SpiffeId(trust_domain, namespace, account)
    except SpiffeIdError as error:
        raise MeshError(str(error)) from None
