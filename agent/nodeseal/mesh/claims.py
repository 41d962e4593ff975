"""Claims: an index of a value that should be one object's alone, where several may say that it is theirs.

Such a value is nobody's: it finds no object. Who decides by it has to know that it is contested, and by whom.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
V = TypeVar("V", bound=Hashable)

_KEY = attrgetter("key")


def _nothing() -> MappingProxyType[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Claims(Mapping[V, T | tuple[T, ...]]):
    """Every value with who claims it: one object, or the tuple of several in the order of their keys."""

    alone: Mapping[V, T] = field(default_factory=_nothing)
    contested: Mapping[V, tuple[T, ...]] = field(default_factory=_nothing)

    def __getitem__(self, value: V) -> T | tuple[T, ...]:
        found = self.contested.get(value)
        return self.alone[value] if found is None else found

    def claimants(self, value: V) -> tuple[T, ...]:
        """All who claim it; none, one or several."""
        found = self.alone.get(value)
        return self.contested.get(value, ()) if found is None else (found,)

    def __iter__(self) -> Iterator[V]:
        yield from self.alone
        yield from self.contested

    def __len__(self) -> int:
        return len(self.alone) + len(self.contested)


@dataclass(frozen=True, slots=True)
class ClaimIndex(Generic[V, T]):
    """Finds an object by a value that it alone claims. See nodeseal.mesh.kinds.Index for `what`: other indexes of the
    same space may have none of these values."""

    name: str
    what: str
    values: Callable[[T], tuple[V, ...]]

    @property
    def nothing(self) -> Claims[V, T]:
        """The entries of no objects."""
        return Claims()

    def changed(
        self, _kind: object, entries: Claims[V, T], leaving: Sequence[tuple[T, T | None]], coming: Iterable[T]
    ) -> Claims[V, T]:
        """The entries after a change."""
        values = self.values
        # dict() of a proxy would go through its items one by one.
        alone: dict[V, T] = entries.alone.copy() if isinstance(entries.alone, MappingProxyType) else dict(entries.alone)
        # Of the values that are contested, or were: who claims them.
        groups = {value: list(claimants) for value, claimants in entries.contested.items()}
        # First everything that goes, then what comes: two objects may have exchanged their values.
        for old, new in leaving:
            stays = new is not None and values(old) == values(new)
            for value in values(old):
                if value in groups:
                    groups[value] = [one for one in groups[value] if one is not old]
                elif stays:
                    assert new is not None
                    alone[value] = new
                else:
                    alone.pop(value, None)
        for item in coming:
            for value in values(item):
                if value in groups:
                    if item not in groups[value]:
                        groups[value].append(item)
                elif alone.setdefault(value, item) is not item:
                    groups[value] = [alone.pop(value), item]
        contested = {}
        for value, group in groups.items():
            if len(group) > 1:
                contested[value] = tuple(sorted(group, key=_KEY))
            elif group:
                alone[value] = group[0]
        return Claims(MappingProxyType(alone), MappingProxyType(contested))
