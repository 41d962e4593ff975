"""The mesh model: all that decisions are made from, in a table for each kind of objects. Immutable; a change makes a
new model."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from nodeseal.mesh.address import Address
from nodeseal.mesh.claims import Claims
from nodeseal.mesh.federated import FEDERATED
from nodeseal.mesh.kinds import GroupIndex, Index, K, Kind, MeshError, T, Table, Tables, V, check_shared
from nodeseal.mesh.node import NODE_BY_ADDRESS, NODES, Node
from nodeseal.mesh.revocation import REVOCATIONS
from nodeseal.mesh.service import FRONTS, SERVICE_BY_ADDRESS, SERVICES, Place, Service, ServicePort
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain
from nodeseal.mesh.trust_anchor import TRUST_ANCHORS, TrustAnchor
from nodeseal.mesh.workload import (
    BY_ADDRESS,
    HOSTS,
    WORKLOADS,
    Connect,
    Mode,
    OnFailure,
    Phase,
    PlaintextWay,
    Workload,
    WorkloadName,
)

__all__ = [
    "KINDS",
    "Connect",
    "Mesh",
    "MeshDifference",
    "MeshError",
    "Mode",
    "OnFailure",
    "Phase",
    "PlaintextWay",
    "Service",
    "ServicePort",
    "TrustAnchor",
    "Workload",
    "WorkloadName",
    "changed_keys",
    "difference",
]

KINDS: Final[dict[str, Kind[Any, Any]]] = {
    kind.name: kind for kind in (WORKLOADS, SERVICES, TRUST_ANCHORS, REVOCATIONS, FEDERATED, NODES)
}
"""Every kind of objects that a mesh has, in the order in which they travel. nodeseal.contracts.mesh.MESSAGES says how
those for cores travel, nodeseal.documents.readers.READERS how they are written in files."""

_Objects = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class MeshDifference:
    """What turns one model into another: by kind the objects to be put in, whether new or changed, and the keys of
    those to be removed. Kinds of which nothing is to be put in or removed are left out."""

    trust_domain: str
    put: _Objects = field(default_factory=dict)
    removed: _Objects = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("put", "removed"):
            kept = {kind: tuple(items) for kind, items in getattr(self, name).items() if items}
            object.__setattr__(self, name, MappingProxyType(kept))

    def put_of(self, kind: Kind[K, T]) -> tuple[T, ...]:
        """What is to be put in of one kind."""
        return self.put.get(kind.name, ())

    def removed_of(self, kind: Kind[K, T]) -> tuple[K, ...]:
        """What is to be removed of one kind."""
        return self.removed.get(kind.name, ())

    @property
    def size(self) -> int:
        """Number of objects put in or removed. 0 still may change the trust domain."""
        return sum(len(items) for objects in (self.put, self.removed) for items in objects.values())

    def parts(self, size: int) -> "list[MeshDifference]":
        """The same in pieces of at most `size` objects, at least one piece; `joined` puts them together again."""
        if self.size <= size:
            return [self]
        pieces: list[MeshDifference] = []
        for kind in {**self.put, **self.removed}:
            for name in ("put", "removed"):
                items = getattr(self, name).get(kind, ())
                for first in range(0, len(items), size):
                    pieces.append(MeshDifference(self.trust_domain, **{name: {kind: items[first : first + size]}}))
        return pieces

    @classmethod
    def joined(cls, pieces: "Sequence[MeshDifference]") -> "MeshDifference":
        """One of all, which must be for the same trust domain; at least one piece."""
        return cls(
            pieces[0].trust_domain,
            _joined([piece.put for piece in pieces]),
            _joined([piece.removed for piece in pieces]),
        )


@dataclass(frozen=True, slots=True)
class Mesh:
    """All that decisions are made from. Made by `build`, `with_phases`, `apply` or `from_difference`."""

    trust_domain: str
    tables: Tables = field(repr=False)

    # The same as in the tables. Decisions look things up here many times, and take their time for little else.
    workloads: Mapping[WorkloadName, Workload] = field(init=False, compare=False)
    services: Mapping[WorkloadName, Service] = field(init=False, compare=False)
    by_address: Mapping[Address, Workload] = field(init=False, compare=False, repr=False)
    contested: Mapping[Address, tuple[Workload, ...]] = field(init=False, compare=False, repr=False)
    """Addresses that several workloads claim, which are not in `by_address`, with these in the order of their names."""
    service_by_address: Mapping[Address, Service] = field(init=False, compare=False, repr=False)
    fronts: Claims[Place, Service] = field(init=False, compare=False, repr=False)
    """Services by where their fronts are dialled, those that share a place with these in the order of their names."""
    nodes: Claims[Address, Node] = field(init=False, compare=False, repr=False)
    """By each of their addresses."""
    hosts: Mapping[Address, tuple[Workload, ...]] = field(init=False, compare=False, repr=False)
    """The nodes' own processes by the address that they share, in the order of their names."""
    trust_domains: frozenset[str] = field(init=False, compare=False, repr=False)
    """Whose workloads may be peers: the mesh's own domain, and those that it is federated with."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "workloads", self.of(WORKLOADS))
        put(self, "services", self.of(SERVICES))
        claims: Claims[Address, Workload] = self.tables[WORKLOADS.name].indexes[BY_ADDRESS.name]
        put(self, "by_address", claims.alone)
        put(self, "contested", claims.contested)
        put(self, "service_by_address", self.by(SERVICES, SERVICE_BY_ADDRESS))
        put(self, "fronts", self.tables[SERVICES.name].indexes[FRONTS.name])
        put(self, "nodes", self.tables[NODES.name].indexes[NODE_BY_ADDRESS.name])
        put(self, "hosts", self.groups(WORKLOADS, HOSTS))
        put(self, "trust_domains", frozenset((self.trust_domain, *self.of(FEDERATED))))

    def of(self, kind: Kind[K, T]) -> Mapping[K, T]:
        """The objects of one kind."""
        return self.tables[kind.name].items

    def by(self, kind: Kind[K, T], index: Index[V, T]) -> Mapping[V, T]:
        """The objects of one kind by a value that is theirs alone."""
        found: Mapping[V, T] = self.tables[kind.name].indexes[index.name]
        return found

    def groups(self, kind: Kind[K, T], index: GroupIndex[V, T]) -> Mapping[V, tuple[T, ...]]:
        """The objects of one kind by a value that they share."""
        found: Mapping[V, tuple[T, ...]] = self.tables[kind.name].indexes[index.name]
        return found

    @classmethod
    def build(
        cls,
        trust_domain: str,
        workloads: Iterable[Workload],
        services: Iterable[Service] = (),
        **others: Iterable[Any],
    ) -> "Mesh":
        """Makes a model with its indexes, in linear time; `others` are further kinds by their names.

        Raises MeshError for a name that two of them share; for an address that a service shares with another object,
        or a process of a node with any but its neighbours, with which it may share no port; and for a name, service
        account or trust domain that cannot be part of a SPIFFE id. Endpoints that name no workload are allowed:
        decisions skip them. So are two workloads that claim one address: see `contested`.
        """
        objects = {WORKLOADS.name: workloads, SERVICES.name: services, **others}
        put = {kind: tuple(items) for kind, items in objects.items()}
        return cls.from_difference(MeshDifference(trust_domain, put))

    def claimants(self, address: Address) -> tuple[Workload, ...]:
        """Whose own address it is: nobody's, one's, or all that claim it."""
        found = self.by_address.get(address)
        return (found,) if found is not None else self.contested.get(address, ())

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
        table = self.tables[WORKLOADS.name].changed(changed)
        return Mesh(self.trust_domain, MappingProxyType({**self.tables, WORKLOADS.name: table}))

    def apply(self, difference: MeshDifference) -> "Mesh":
        """The model that `difference` leads to. Raises MeshError, as `build` does, and leaves this one as it is.

        Takes time for what changes; of what stays only the indexes are copied, which for 50,000 workloads takes a
        millisecond.
        """
        trust_domain, put, removed = difference.trust_domain, difference.put, difference.removed
        tables = dict(self.tables)
        for name in {**put, **removed}:
            tables[name] = tables[name].changed(put.get(name, ()), removed.get(name, ()))
        for name, items in put.items():
            check_shared(tables, KINDS[name], items)
        # Nothing at all has no trust domain: the first one is new, even if it is "".
        same_domain = trust_domain == self.trust_domain != ""
        if not same_domain:
            try:
                check_trust_domain(trust_domain)
            except SpiffeIdError as error:
                raise MeshError(str(error)) from None
        for name, table in tables.items():
            KINDS[name].check(trust_domain, put.get(name, ()) if same_domain else table.items.values())
        return Mesh(trust_domain, MappingProxyType(tables))

    def for_cores(self) -> "Mesh":
        """The same without the objects that cores do not get (Kind.for_cores)."""
        kept = {name: table for name, table in self.tables.items() if table.kind.for_cores or not table.items}
        if len(kept) == len(self.tables):
            return self
        tables = {name: kept.get(name) or Table.empty(table.kind) for name, table in self.tables.items()}
        return Mesh(self.trust_domain, MappingProxyType(tables))

    def as_difference(self) -> MeshDifference:
        """What turns nothing into this model."""
        return MeshDifference(
            self.trust_domain, {name: tuple(table.items.values()) for name, table in self.tables.items()}
        )

    @classmethod
    def from_difference(cls, content: MeshDifference) -> "Mesh":
        """The reverse of as_difference. Raises MeshError, as `build` does, and when something is to be removed."""
        if content.removed:
            raise MeshError("a whole mesh is expected, a difference with removals was found")
        nothing = cls("", {name: Table.empty(kind) for name, kind in KINDS.items()})
        return nothing.apply(content)


def difference(old: Mesh, new: Mesh) -> MeshDifference:
    """What turns `old` into `new`: `old.apply(difference(old, new)) == new`. Takes time for what changes where the two
    come of each other by few steps, or of a common one; otherwise for all objects."""
    put, removed = {}, {}
    for name, table in new.tables.items():
        former = old.tables[name]
        put[name], removed[name] = _different(former.items, table.items, former.lineage.differing(table.lineage))
    return MeshDifference(new.trust_domain, put, removed)


def changed_keys(old: Mesh, new: Mesh, kind: Kind[K, T]) -> set[K] | None:
    """The keys whose objects may be others in `new`, or there in one of the two alone; None: any."""
    found: set[Any] | None = old.tables[kind.name].lineage.differing(new.tables[kind.name].lineage)
    return found


def _different(
    old: Mapping[K, T], new: Mapping[K, T], keys: AbstractSet[Any] | None
) -> tuple[tuple[T, ...], tuple[K, ...]]:
    """(what is new or changed, what is gone). `keys`: no others are different; None: any may be."""
    if old is new:
        return (), ()
    if keys is not None:
        there = [new[key] for key in keys if key in new]
        return tuple(item for item in there if old.get(item.key) != item), tuple(
            key for key in keys if key in old and key not in new
        )
    # Models that follow each other share most of their objects: fields are compared only of those that they do not.
    known = old.get
    candidates = [item for key, item in new.items() if known(key) is not item]
    changed = tuple(item for item in candidates if known(item.key) != item)
    added = sum(item.key not in old for item in changed)
    if len(new) - added == len(old):
        return changed, ()
    return changed, tuple(key for key in old if key not in new)


def _joined(pieces: Iterable[_Objects]) -> _Objects:
    joined: dict[str, list[Any]] = {}
    for piece in pieces:
        for kind, items in piece.items():
            joined.setdefault(kind, []).extend(items)
    return {kind: tuple(items) for kind, items in joined.items()}
