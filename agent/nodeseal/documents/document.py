"""YAML files that may be anything: hostile, half written, not YAML at all. Read into small nodes with line numbers.

PyYAML's own node objects take about a kilobyte each, and a mesh state of 50,000 workloads has 600,000 of them. So a
document is read from the parser's events, the items of its top-level lists are handed out one at a time, and nothing
of them is kept here. Everything that makes a small file large (anchors and aliases, deep nesting) or its meaning
uncertain (tags, a repeated key, a second document) is a problem, not a feature.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

MAX_BYTES = 16 * 1024 * 1024
"""Largest file that is read."""

MAX_DEPTH = 8
"""Deepest nesting of lists and mappings; the mesh state needs four."""

MAX_KEYS = 1000
"""Most fields of one mapping."""

MAX_ITEMS = 100_000
"""Most items of a list that is kept as a whole."""

MAX_PROBLEMS = 100
"""Reading stops after so many problems: nobody reads more, and a hostile file must not fill the memory with them."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.resolver.Resolver()
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file. `line` counts from 1; 0 means the file as a whole. `field` may be empty.

    `passed_over`: nothing was read of it, and what was read counts.
    """

    file: str
    line: int
    field: str
    expected: str
    found: str
    passed_over: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        field = f" {self.field}:" if self.field else ""
        return f"{place}:{field} expected {self.expected}, found {self.found}"


class Problems:
    """Collects the problems of one file, of more than MAX_PROBLEMS the first ones and a note."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Problem] = []
        self.count = 0
        """How many there were, including those that were not kept."""

    @property
    def full(self) -> bool:
        """Whether further ones are only counted."""
        return self.count >= MAX_PROBLEMS

    def add(self, line: int, field: str, expected: str, found: str) -> None:
        """Notes one."""
        self.count += 1
        if self.count < MAX_PROBLEMS:
            self.found.append(Problem(self.file, line, field, expected, found))
        elif self.count == MAX_PROBLEMS:
            expected = f"fewer than {MAX_PROBLEMS} problems"
            self.found.append(Problem(self.file, 0, "", expected, "more; the rest is not shown"))

    def extend(self, problems: Iterable[Problem]) -> None:
        """Takes over problems that were noted elsewhere."""
        for problem in problems:
            self.count += 1
            self.found.append(problem)


class _GiveUp(Exception):
    """The rest of a file cannot be read, or is not worth it. The problem is noted."""


class Tag(StrEnum):
    """What a scalar is. The values read well after "found"."""

    TEXT = "the text"
    INTEGER = "the number"
    REAL = "the fraction"
    TRUTH = "the truth value"
    NOTHING = "nothing"
    OTHER = "the value"


_TAGS = {
    "tag:yaml.org,2002:str": Tag.TEXT,
    "tag:yaml.org,2002:int": Tag.INTEGER,
    "tag:yaml.org,2002:float": Tag.REAL,
    "tag:yaml.org,2002:bool": Tag.TRUTH,
    "tag:yaml.org,2002:null": Tag.NOTHING,
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value: its text as written, and what YAML 1.1 takes it for."""

    line: int
    text: str
    tag: Tag


@dataclass(frozen=True, slots=True)
class List:
    """A sequence. A top-level one whose items were handed out has none left here."""

    line: int
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping with texts as keys. Each key occurs once."""

    line: int
    entries: dict[str, "Node"]


@dataclass(frozen=True, slots=True)
class Broken:
    """Stands for something whose problem is already noted, so that nobody complains about it again."""

    line: int


Node: TypeAlias = Scalar | List | Mapping | Broken
OnItem: TypeAlias = Callable[[str, int, Node], None]


def shown(text: str) -> str:
    """`text` as it may stand in a message: quoted, ASCII, short."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def shown_path(path: Path | str) -> str:
    """A path as it may stand in a message: on one line, and printable whatever bytes it is made of."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def describe(node: Node) -> str:
    """What a node is, to stand after "found"."""
    match node:
        case Scalar(tag=Tag.NOTHING):
            return "nothing"
        case Scalar(tag=Tag.TEXT):
            return shown(node.text)
        case Scalar():
            return f"{node.tag} {shown(node.text)[1:-1]}"
        case List():
            return "a list"
        case Mapping():
            return "a mapping"
        case Broken():
            return "something else"


def node_of(value: object) -> Node:
    """What is a node elsewhere, of a value of JSON; nobody knows its line (0)."""
    match value:
        case None:
            return Scalar(0, "null", Tag.NOTHING)
        case bool():
            return Scalar(0, str(value).lower(), Tag.TRUTH)
        case int():
            return Scalar(0, str(value), Tag.INTEGER)
        case float():
            return Scalar(0, str(value), Tag.REAL)
        case list():
            return List(0, tuple(map(node_of, value)))
        case dict():
            return Mapping(0, {key: node_of(item) for key, item in value.items()})
    return Scalar(0, str(value), Tag.TEXT)


@dataclass(frozen=True, slots=True)
class Content:
    """What was read of a file. `data` is None if it could not be read, and `problems` say why."""

    path: Path
    name: str
    data: bytes | None
    problems: tuple[Problem, ...] = ()


def read_content(path: Path, name: str) -> Content:
    """Reads a regular file of at most MAX_BYTES; `name` stands for it in messages. Never raises, never waits."""

    def unreadable(expected: str, found: str) -> Content:
        return Content(path, name, None, (Problem(name, 0, "", expected, found),))

    try:
        # Without O_NONBLOCK opening a named pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        return unreadable("a readable file", why_none(error))
    data = bytearray()
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            return unreadable("a regular file", "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket")
        while len(data) <= MAX_BYTES and (part := os.read(descriptor, MAX_BYTES + 1 - len(data))):
            data += part
    except OSError as error:
        return unreadable("a readable file", why_none(error))
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        return unreadable(f"a file of at most {MAX_BYTES >> 20} MiB", "a larger one")
    return Content(path, name, bytes(data))


def why_none(error: OSError) -> str:
    """An error of the system, to stand after "found"."""
    return f"none: {(error.strerror or str(error)).lower()}"


def read_document(
    data: bytes, problems: Problems, on_item: OnItem | None = None, depth: int = MAX_DEPTH
) -> Mapping | None:
    """The one document of a file, which must be a mapping; None when there is none (the problem is noted then).
    `depth`: the deepest nesting that is read.

    With `on_item`, the items of the lists directly under the mapping are not kept: each is given to
    `on_item(key, index, node)` as soon as it is read.

    Never raises for what is in `data`; a problem that makes the rest unreadable ends the reading.
    """
    try:
        return _Reader(_decode(data, problems), problems, on_item, depth).read()
    except _GiveUp:
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at column {mark.column + 1}" if mark else ""
        text = (error.problem or error.context or "something else").removeprefix("found ")
        problems.add(mark.line + 1 if mark else 0, "", "YAML", text + place)
        return None
    except yaml.YAMLError as error:
        problems.add(0, "", "YAML", shown(str(error)))
        return None


def _decode(data: bytes, problems: Problems) -> str:
    try:
        text = data.decode("utf-8").removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.add(line, "", "UTF-8 text", f"the byte 0x{data[error.start]:02x}")
        raise _GiveUp from None
    if (bad := _NOT_PRINTABLE.search(text)) is not None:
        line = text.count("\n", 0, bad.start()) + 1
        problems.add(line, "", "printable text", f"the character U+{ord(bad[0]):04X}")
        raise _GiveUp
    return text


class _Reader:
    """Makes nodes of a parser's events."""

    def __init__(self, text: str, problems: Problems, on_item: OnItem | None, most: int) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.problems = problems
        self.on_item = on_item
        self.most = most

    def read(self) -> Mapping | None:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            # An editor that writes in place empties the file first: nothing is never taken for "no workloads".
            self.problems.add(0, "", "a mapping", "nothing")
            return None
        root = self.node(next(self.events), 0, "")
        next(self.events)  # the document's end
        following = next(self.events)
        if not isinstance(following, yaml.StreamEndEvent):
            line = following.start_mark.line + 1
            self.problems.add(line, "", "one YAML document", "a second one")
        if isinstance(root, Mapping):
            return root
        if not isinstance(root, Broken):
            self.problems.add(root.line, "", "a mapping", describe(root))
        return None

    def node(self, event: Any, depth: int, field: str) -> Node:
        if self.problems.full:
            raise _GiveUp
        line: int = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.problems.add(line, field, "a value written out", f"the alias {shown(f'*{event.anchor}')}")
            return Broken(line)
        if event.anchor is not None:
            self.problems.add(line, field, "a value without an anchor", f"the anchor {shown(f'&{event.anchor}')}")
        if event.tag is not None:
            self.problems.add(line, field, "a value without a tag", f"the tag {shown(event.tag)}")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(line, event.value, self.tag(event))
        if depth >= self.most:
            self.problems.add(line, field, f"at most {self.most} levels of lists and mappings", "more")
            raise _GiveUp
        if isinstance(event, yaml.SequenceStartEvent):
            return List(line, tuple(self.items(depth, field)))
        return Mapping(line, self.entries(depth, field))

    def items(self, depth: int, field: str) -> Iterator[Node]:
        hand_out = self.on_item if depth == 1 else None
        index = 0
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            node = self.node(event, depth + 1, f"{field}[{index}]")
            if hand_out is None:
                if index >= MAX_ITEMS:
                    self.problems.add(node.line, field, f"at most {MAX_ITEMS} items", "more")
                    raise _GiveUp
                yield node
            else:
                hand_out(field, index, node)
            index += 1

    def entries(self, depth: int, field: str) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, depth + 1, field)
            if not isinstance(key, Scalar) or key.tag is not Tag.TEXT:
                if not isinstance(key, Broken):
                    self.problems.add(key.line, field, "a field name", describe(key))
                self.node(next(self.events), depth + 1, field)
                continue
            name = key.text if key.text.isidentifier() and len(key.text) <= 60 else shown(key.text)
            path = f"{field}.{name}" if field else name
            if key.text in entries:
                first = entries[key.text].line
                self.problems.add(key.line, path, "each field once", f"it again (first at line {first})")
                # Read as under another name, so that a list's items are not handed out twice.
                self.node(next(self.events), depth + 2, path)
                continue
            if len(entries) >= MAX_KEYS:
                self.problems.add(key.line, field, f"at most {MAX_KEYS} fields", "more")
                raise _GiveUp
            entries[key.text] = self.node(next(self.events), depth + 1, path)
        return entries

    @staticmethod
    def tag(event: Any) -> Tag:
        # implicit[0]: written plainly, without quotes; only then may it be something other than text.
        if not event.implicit[0]:
            return Tag.TEXT
        text: str = event.value
        return _tag_of_short(text) if len(text) <= 64 else tag_of(text)


def tag_of(text: str) -> Tag:
    """What YAML 1.1 takes a scalar without quotes for."""
    return _TAGS.get(_RESOLVER.resolve(yaml.ScalarNode, text, (True, False)), Tag.OTHER)


# Field names and the names of namespaces and nodes come again and again.
_tag_of_short = lru_cache(4096)(tag_of)
