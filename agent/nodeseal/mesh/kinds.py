"""Tables: the objects of one kind by their key, with indexes. Immutable; a change makes a new table.

A kind (workloads, services) is an entry in nodeseal.mesh.model.KINDS. What a Kind says is all that a model needs to
know of its objects: building, changing, comparing, taking apart and putting together are the same for every kind.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from nodeseal.mesh.claims import ClaimIndex
from nodeseal.mesh.lineage import Lineage


class MeshError(ValueError):
    """Objects that cannot be in one mesh together."""


class _Keyed(Protocol):
    @property
    def key(self) -> Any:
        """What it is known by: hashable, in an order, and written as str() does it."""


K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=_Keyed)
V = TypeVar("V", bound=Hashable)
P = TypeVar("P")
_Any = TypeVar("_Any")

_Leaving: TypeAlias = Sequence[tuple[T, T | None]]
"""(an object that goes, the one that comes for it or None)"""

_KEY = attrgetter("key")


@dataclass(frozen=True, slots=True)
class Index(Generic[V, T]):
    """Finds an object by a value that is its alone.

    Indexes with the same `what`, of all kinds, are one space: a value that is in one of them is in no other.
    """

    name: str
    what: str
    """What a value is, in messages: "address". Fields that hold it are called so as well."""
    values: Callable[[T], tuple[V, ...]]

    @property
    def nothing(self) -> Mapping[V, T]:
        """The entries of no objects."""
        return MappingProxyType({})

    def changed(
        self, kind: "Kind[Any, T]", entries: Mapping[V, T], leaving: _Leaving[T], coming: Iterable[T]
    ) -> Mapping[V, T]:
        """The entries after a change. Raises MeshError when two objects have a value in common."""
        values = self.values
        result = _copy(entries)
        # First everything that goes, then what comes: two objects may have exchanged their values.
        for old, new in leaving:
            stays = new is not None and values(old) == values(new)
            for value in values(old):
                if stays:
                    assert new is not None
                    result[value] = new
                else:
                    result.pop(value, None)
        for item in coming:
            for value in values(item):
                other = result.setdefault(value, item)
                if other is not item:
                    raise MeshError(str(Clash(kind, other, kind, item, self.what, value)))
        return MappingProxyType(result)


@dataclass(frozen=True, slots=True)
class GroupIndex(Generic[V, T]):
    """Finds the objects that share a value, in the order of their keys. See Index for `what`."""

    name: str
    what: str
    values: Callable[[T], tuple[V, ...]]
    clash: "Callable[[V, T, T], Clash | None]"
    """Why two objects cannot share a value; None if they can."""

    @property
    def nothing(self) -> Mapping[V, tuple[T, ...]]:
        """The entries of no objects."""
        return MappingProxyType({})

    def changed(
        self, kind: "Kind[Any, T]", entries: Mapping[V, tuple[T, ...]], leaving: _Leaving[T], coming: Iterable[T]
    ) -> Mapping[V, tuple[T, ...]]:
        """The entries after a change. Raises MeshError when two objects cannot share what they do."""
        gone: dict[V, set[Hashable]] = {}
        new: dict[V, list[T]] = {}
        for old, _ in leaving:
            for value in self.values(old):
                gone.setdefault(value, set()).add(old.key)
        for item in coming:
            for value in self.values(item):
                new.setdefault(value, []).append(item)
        if not gone and not new:
            return entries
        result = _copy(entries)
        for value in {**gone, **new}:
            group = [item for item in entries.get(value, ()) if item.key not in gone.get(value, ())]
            for item in sorted(new.get(value, ()), key=_KEY):
                for other in group:
                    if (clash := self.clash(value, other, item)) is not None:
                        raise MeshError(str(clash))
                group.append(item)
            if group:
                result[value] = tuple(sorted(group, key=_KEY))
            else:
                result.pop(value, None)
        return MappingProxyType(result)


AnyIndex: TypeAlias = Index[Any, Any] | GroupIndex[Any, Any] | ClaimIndex[Any, Any]


def _unchecked(trust_domain: str, items: Iterable[Any]) -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Kind(Generic[K, T]):
    """What a model needs to know of one kind of objects."""

    name: str
    """Several of them: "workloads". The field that holds them, in files and on the wire."""
    singular: str
    read_key: Callable[[str], K]
    """The reverse of str() of a key. Raises MeshError."""
    indexes: tuple[Index[Any, T] | GroupIndex[Any, T] | ClaimIndex[Any, T], ...] = ()
    check: Callable[[str, Iterable[T]], None] = _unchecked
    """check(trust_domain, objects): raises MeshError for what no such mesh can have."""
    for_cores: bool = True
    """It is part of the mesh that cores get. What may be large and is decided by nobody is not."""


@dataclass(frozen=True, slots=True)
class Clash:
    """Two objects that cannot be in one mesh together, `other` being the later one, for a value that both have."""

    kind: Kind[Any, Any]
    one: Any
    other_kind: Kind[Any, Any]
    other: Any
    what: str
    """What they share, and `value`, which one."""
    value: object
    field: str = ""
    """The later one's field that has it, if it is not called as `what` is."""
    note: str = ""
    """What makes it wrong, if it may be right: "of different nodes"."""

    def __str__(self) -> str:
        note = f" {self.note}" if self.note else ""
        if self.what == "name":
            return f"two {self.kind.name} are named {self.value}"
        if self.kind is self.other_kind:
            who = f"{self.kind.name} {self.one.key} and {self.other.key}{note}"
        else:
            who = f"{self.kind.singular} {self.one.key} and {self.other_kind.singular} {self.other.key}{note}"
        return f"{who} share the {self.what} {self.value}"


@dataclass(frozen=True, slots=True)
class Table(Generic[K, T]):
    """All objects of a kind. Made by `empty` and `changed`; two are equal if their objects are."""

    kind: Kind[K, T] = field(compare=False)
    items: Mapping[K, T]
    indexes: Mapping[str, Any] = field(compare=False, repr=False)
    """By the index's name: its entries, value -> object, or objects."""
    lineage: Lineage = field(default_factory=Lineage, compare=False, repr=False)

    @classmethod
    def empty(cls, kind: Kind[K, T]) -> "Table[K, T]":
        """One without objects."""
        nothing: Mapping[Any, Any] = MappingProxyType({})
        return cls(kind, nothing, {index.name: index.nothing for index in kind.indexes})

    def changed(self, put: Sequence[T], removed: Collection[K] = ()) -> "Table[K, T]":
        """The table with objects that are new or changed, and without others; keys that it does not know are passed
        over. Raises MeshError when two objects have one key, or a value in common that an index allows only one.

        Takes time for what changes; of what stays only the indexes are copied.
        """
        coming = {item.key: item for item in put}
        if len(coming) != len(put):
            _, _, clash = next(clashes([(self.kind, enumerate(put))]))
            raise MeshError(str(clash))
        items = _copy(self.items)
        leaving: list[tuple[T, T | None]] = []
        for key in removed:
            if (old := items.pop(key, None)) is not None:
                leaving.append((old, None))
        if items:
            leaving += [(items[key], item) for key, item in coming.items() if key in items]
            items.update(coming)
        else:
            items = coming
        indexes = {
            index.name: index.changed(self.kind, self.indexes[index.name], leaving, put) for index in self.kind.indexes
        }
        lineage = self.lineage.after(coming.keys() | set(removed))
        return Table(self.kind, MappingProxyType(items), indexes, lineage)


Tables: TypeAlias = Mapping[str, Table[Any, Any]]
"""By the kind's name."""


def check_shared(tables: Tables, kind: Kind[Any, T], put: Collection[T]) -> None:
    """Raises MeshError if one of these objects, which are in the tables, has a value that is in another index of the
    same space."""
    for index in kind.indexes:
        mine = tables[kind.name].indexes[index.name]
        for table in tables.values():
            for other in table.kind.indexes:
                if other.what != index.what or (other.name == index.name and table.kind is kind):
                    continue
                theirs = table.indexes[other.name]
                if len(theirs) < len(put):
                    shared = next((value for value in theirs if value in mine), None)
                else:
                    shared = next((value for item in put for value in index.values(item) if value in theirs), None)
                if shared is not None:
                    owners = [(kind, _first(mine[shared])), (table.kind, _first(theirs[shared]))]
                    if list(tables).index(table.kind.name) < list(tables).index(kind.name):
                        owners.reverse()
                    raise MeshError(str(Clash(*owners[0], *owners[1], index.what, shared)))


def clashes(contents: Iterable[tuple[Kind[Any, Any], Iterable[tuple[P, Any]]]]) -> Iterator[tuple[P, P, Clash]]:
    """Every reason why these objects, each with its place, cannot be in one mesh together: (place of the first, place
    of the later one, reason). What `Table.changed` and `check_shared` raise one of, at whatever cost."""
    spaces: dict[str, dict[Hashable, list[tuple[AnyIndex, Kind[Any, Any], P, Any]]]] = {}
    for kind, placed in contents:
        keys: dict[Hashable, tuple[P, Any]] = {}
        for place, item in placed:
            if item.key in keys:
                first_place, first = keys[item.key]
                yield first_place, place, Clash(kind, first, kind, item, "name", item.key)
            keys.setdefault(item.key, (place, item))
            for index in kind.indexes:
                for value in index.values(item):
                    owners = spaces.setdefault(index.what, {}).setdefault(value, [])
                    if owners and not (isinstance(index, GroupIndex | ClaimIndex) and owners[0][0] is index):
                        _, first_kind, first_place, first = owners[0]
                        yield first_place, place, Clash(first_kind, first, kind, item, index.what, value)
                        continue
                    if isinstance(index, GroupIndex):
                        for _, _, other_place, other in owners:
                            if (clash := index.clash(value, other, item)) is not None:
                                yield other_place, place, clash
                    owners.append((index, kind, place, item))


def _first(found: Any) -> Any:
    return found[0] if type(found) is tuple else found


def _copy(mapping: Mapping[K, _Any]) -> dict[K, _Any]:
    # dict() of a proxy goes through its items one by one, and hashes each key again; copy() does not.
    return mapping.copy() if isinstance(mapping, MappingProxyType | dict) else dict(mapping)
