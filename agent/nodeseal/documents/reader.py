"""What a reader of one kind of objects is, and what files say before they are put together into one model."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from msgspec import Struct

from nodeseal.documents.document import Node, Problem, Problems

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Struct)


@dataclass(slots=True)
class Placed(Generic[_T]):
    """The objects of one list of one file, each with its line. One with problems is None, so that indices stay."""

    file: str
    list_name: str
    items: list[_T | None] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("L"))
    """Empty if none is known: a path has to do."""

    def valid(self) -> Iterator[tuple[int, _T]]:
        """Each valid object with its index."""
        return ((index, item) for index, item in enumerate(self.items) if item is not None)

    def add(self, node: Node, item: _T | None) -> None:
        """Takes the next object."""
        self.items.append(item)
        self.lines.append(node.line)

    def problem(self, index: int, field_name: str, expected: str, found: str) -> Problem:
        """A problem with a field of an object."""
        line = self.lines[index] if self.lines else 0
        return Problem(self.file, line, f"{self.list_name}[{index}].{field_name}", expected, found)

    def place(self, index: int) -> str:
        """Where an object is, for messages."""
        line = f":{self.lines[index]}" if self.lines else ""
        return f"{self.file}{line}, {self.list_name}[{index}]"


@dataclass(frozen=True, slots=True)
class Stated:
    """What all files say together."""

    trust_domain: str
    keys: Mapping[str, Container[Any]]
    """Of each kind's objects."""


def _nothing_wrong(stated: Stated, lists: Iterable[Placed[Any]]) -> Iterator[Problem]:
    return iter(())


def _not_quickly(entry: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Reader(Generic[_T, _E]):
    """How objects of one kind are read from files."""

    entry: type[_E]
    """What an object is in a JSON file."""
    read: Callable[[Problems, Node, str], _T | None]
    """read(problems, node, path): an object, or None after noting why there is none."""
    take: Callable[[_E], _T | None] = _not_quickly
    """The quick way from an entry of a large file to the same object. None: anything is wrong, or not of the form that
    is frequent; `read` will see."""
    check: Callable[[Stated, Iterable[Placed[_T]]], Iterator[Problem]] = _nothing_wrong
    """check(stated, lists): what is wrong with objects that are right by themselves, in the lists of all files."""
