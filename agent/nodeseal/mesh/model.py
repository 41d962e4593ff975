"""The mesh model: workloads, services, and which of them are enrolled. Immutable; a change makes a new model.

A model knows phases from two sides. For workloads of other nodes there are two: ENROLLED (their node has published
them) and ABSENT. For the workloads of its own node the agent puts in all four with `Mesh.with_phases`.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Self

from nodeseal.mesh.address import Address
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
    """One application instance with an address of its own."""

    key: WorkloadName
    service_account: str
    node: str
    address: Address
    netns: str | None
    """Path of its network namespace, or a name under /run/netns. Needed on its own node only."""
    wanted: bool
    """The mesh state asks for it to be enrolled. Whether it is, says `phase`."""
    mode: Mode
    phase: Phase = Phase.ABSENT

    @property
    def accepts_tunnels(self) -> bool:
        """New connections to it go through a tunnel. (While it is LEAVING it takes tunnels, but none should begin.)"""
        return self.phase in _ACCEPTS_TUNNELS

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
    """A virtual address that stands for any of its endpoints."""

    key: WorkloadName
    address: Address
    ports: tuple[ServicePort, ...]
    endpoints: tuple[WorkloadName, ...]

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

    @classmethod
    def build(cls, trust_domain: str, workloads: Iterable[Workload], services: Iterable[Service] = ()) -> "Mesh":
        """Makes a model with its indexes, in linear time.

        Raises MeshError for a name or an address that two of them share, and for a name, service account or trust
        domain that cannot be part of a SPIFFE id. Endpoints that name no workload are allowed: decisions skip them.
        """
        by_name: dict[WorkloadName, Workload] = {}
        by_address: dict[Address, Workload] = {}
        for workload in workloads:
            if by_name.setdefault(workload.key, workload) is not workload:
                raise MeshError(f"two workloads are named {workload.key}")
            other = by_address.setdefault(workload.address, workload)
            if other is not workload:
                raise MeshError(f"workloads {other.key} and {workload.key} share the address {workload.address}")
        service_by_name: dict[WorkloadName, Service] = {}
        service_by_address: dict[Address, Service] = {}
        for service in services:
            if service_by_name.setdefault(service.key, service) is not service:
                raise MeshError(f"two services are named {service.key}")
            rival = service_by_address.setdefault(service.address, service)
            if rival is not service:
                raise MeshError(f"services {rival.key} and {service.key} share the address {service.address}")
        _check_addresses(by_address, service_by_address)
        _check_identities(trust_domain, by_name.values())
        return cls._of(trust_domain, by_name, service_by_name, by_address, service_by_address)

    @classmethod
    def _of(
        cls,
        trust_domain: str,
        workloads: dict[WorkloadName, Workload],
        services: dict[WorkloadName, Service],
        by_address: dict[Address, Workload],
        service_by_address: dict[Address, Service],
    ) -> "Mesh":
        return cls(
            trust_domain,
            MappingProxyType(workloads),
            MappingProxyType(services),
            MappingProxyType(by_address),
            MappingProxyType(service_by_address),
        )

    def with_phases(self, phases: Mapping[WorkloadName, Phase]) -> "Mesh":
        """The same model with these workloads in these phases; names it does not know are passed over."""
        changed = [
            replace(workload, phase=phase)
            for name, phase in phases.items()
            if (workload := self.workloads.get(name)) is not None and workload.phase is not phase
        ]
        if not changed:
            return self
        workloads = dict(self.workloads)
        by_address = dict(self.by_address)
        for workload in changed:
            workloads[workload.key] = workload
            by_address[workload.address] = workload
        return Mesh(
            self.trust_domain,
            MappingProxyType(workloads),
            self.services,
            MappingProxyType(by_address),
            self.service_by_address,
        )

    def apply(self, difference: MeshDifference) -> "Mesh":
        """The model that `difference` leads to. Raises MeshError, as `build` does, and leaves this one as it is."""
        workloads = dict(self.workloads)
        by_address = dict(self.by_address)
        # First everything that goes, then what comes: two workloads may have exchanged their addresses.
        for key in (*difference.removed_workloads, *(workload.key for workload in difference.workloads)):
            if (old := workloads.get(key)) is not None:
                by_address.pop(old.address, None)
        for key in difference.removed_workloads:
            workloads.pop(key, None)
        for workload in difference.workloads:
            workloads[workload.key] = workload
            other = by_address.setdefault(workload.address, workload)
            if other is not workload:
                raise MeshError(f"workloads {other.key} and {workload.key} share the address {workload.address}")
        services = dict(self.services)
        service_by_address = dict(self.service_by_address)
        for key in (*difference.removed_services, *(service.key for service in difference.services)):
            if (gone := services.get(key)) is not None:
                service_by_address.pop(gone.address, None)
        for key in difference.removed_services:
            services.pop(key, None)
        for service in difference.services:
            services[service.key] = service
            rival = service_by_address.setdefault(service.address, service)
            if rival is not service:
                raise MeshError(f"services {rival.key} and {service.key} share the address {service.address}")
        _check_addresses(by_address, service_by_address)
        same_domain = difference.trust_domain == self.trust_domain
        _check_identities(difference.trust_domain, difference.workloads if same_domain else workloads.values())
        return self._of(difference.trust_domain, workloads, services, by_address, service_by_address)

    def to_wire(self) -> dict[str, object]:
        """A dict that json can write: the difference from nothing to this model."""
        return MeshDifference(
            self.trust_domain, tuple(self.workloads.values()), (), tuple(self.services.values())
        ).to_wire()

    @classmethod
    def from_wire(cls, data: Mapping[str, object]) -> "Mesh":
        """The reverse of to_wire. Raises MeshError for anything else."""
        content = MeshDifference.from_wire(data)
        if content.removed_workloads or content.removed_services:
            raise MeshError("a whole mesh is expected, a difference with removals was found")
        return cls.build(content.trust_domain, content.workloads, content.services)


def difference(old: Mesh, new: Mesh) -> MeshDifference:
    """What turns `old` into `new`, in linear time: `old.apply(difference(old, new)) == new`."""
    return MeshDifference(
        trust_domain=new.trust_domain,
        workloads=tuple(w for key, w in new.workloads.items() if not _same(old.workloads.get(key), w)),
        removed_workloads=tuple(key for key in old.workloads if key not in new.workloads),
        services=tuple(s for key, s in new.services.items() if not _same(old.services.get(key), s)),
        removed_services=tuple(key for key in old.services if key not in new.services),
    )


def _same(old: object, new: object) -> bool:
    # Models that follow each other share most of their objects, and comparing fields is fifty times slower.
    return old is new or old == new


def _check_addresses(by_address: dict[Address, Workload], service_by_address: dict[Address, Service]) -> None:
    for address in by_address.keys() & service_by_address.keys():
        workload, service = by_address[address], service_by_address[address]
        raise MeshError(f"workload {workload.key} and service {service.key} share the address {address}")


def _check_identities(trust_domain: str, workloads: Iterable[Workload]) -> None:
    """Makes sure that no decision can fail later for want of an identity."""
    try:
        check_trust_domain(trust_domain)
        for namespace, account in {(workload.key.namespace, workload.service_account) for workload in workloads}:
            SpiffeId(trust_domain, namespace, account)
    except SpiffeIdError as error:
        raise MeshError(str(error)) from None
