"""A message's fields as the reference shows them: their names in JSON, types and meanings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect as types

Message = type[Any]
"""A msgspec.Struct, or a dataclass inside one."""
Link = Callable[[Message], str]
"""How another message is named where a field has one."""

_LISTS = types.ListType | types.VarTupleType | types.SetType | types.FrozenSetType
_CLASSES = types.StructType | types.DataclassType
_WORDS: dict[type[types.Type], tuple[str, str]] = {
    types.BoolType: ("true or false", "true or false"),
    types.IntType: ("integer", "integers"),
    types.FloatType: ("number", "numbers"),
    types.StrType: ("string", "strings"),
    types.NoneType: ("null", "null"),
    types.DateTimeType: ("time", "times"),
    types.AnyType: ("anything", "anything"),
    types.RawType: ("object", "objects"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """`needed`: it must be there; `meaning`: "" where the name says it."""

    name: str
    type: types.Type
    needed: bool
    meaning: str


def summary(message: Message) -> str:
    """What the message is, in one line."""
    return one_line(inspect.getdoc(message) or "")


def one_line(text: str) -> str:
    """Without its line breaks."""
    return " ".join(text.split())


def fields(message: Message) -> list[Field]:
    """The fields in their order."""
    found = types.type_info(message)
    assert isinstance(found, _CLASSES)
    meanings = meanings_of(message)
    return [
        Field(
            one.encode_name,
            one.type,
            one.required,
            " ".join(part for part in (meanings.get(one.name, ""), _described(one.type)) if part),
        )
        for one in found.fields
    ]


def messages(*roots: Message) -> list[Message]:
    """These and those that their fields have, each once, in the order in which a reader meets them."""
    found: dict[Message, None] = {}

    def add(message: Message) -> None:
        if message not in found:
            found[message] = None
            for field in fields(message):
                for child in _classes(field.type):
                    add(child)

    for root in roots:
        add(root)
    return list(found)


def type_text(one: types.Type, link: Link) -> str:
    """Such as "list of strings"."""
    return _text(one, link, plural=False)


def meanings_of(message: Message) -> dict[str, str]:
    """Field -> what its class says of it: in a string below it (PEP 258), or in a comment above it."""
    found: dict[str, str] = {}
    for one in reversed(message.__mro__):
        if not dataclasses.is_dataclass(one) and not (issubclass(one, msgspec.Struct) and one is not msgspec.Struct):
            continue
        source = textwrap.dedent(inspect.getsource(one))
        (tree,) = ast.parse(source).body
        assert isinstance(tree, ast.ClassDef)
        for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = _string(following) or _comment(source.splitlines(), node.lineno - 2)
                found[node.target.id] = one_line(text)
    return found


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def _comment(lines: Sequence[str], last: int) -> str:
    """That ends with this line."""
    first = last
    while lines[first].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().removeprefix("#") for line in lines[first + 1 : last + 1])


def _described(one: types.Type) -> str:
    """What the types' own descriptions say, the outermost last."""
    if isinstance(one, types.Metadata):
        inner = _described(one.type)
        own = (one.extra_json_schema or {}).get("description", "")
        return f"{own} {inner}".strip()
    if isinstance(one, types.UnionType):
        return " ".join(text for part in one.types if (text := _described(part)))
    return ""


def _classes(one: types.Type) -> Iterator[Message]:
    if isinstance(one, _CLASSES):
        yield one.cls
    elif isinstance(one, types.Metadata):
        yield from _classes(one.type)
    elif isinstance(one, types.UnionType):
        for part in one.types:
            yield from _classes(part)
    elif isinstance(one, types.TupleType):
        for part in one.item_types:
            yield from _classes(part)
    elif isinstance(one, types.DictType):
        yield from _classes(one.value_type)
    elif isinstance(one, _LISTS):
        yield from _classes(one.item_type)


def _text(one: types.Type, link: Link, *, plural: bool) -> str:
    s = "s" if plural else ""
    if isinstance(one, types.Metadata):
        return _text(one.type, link, plural=plural)
    if isinstance(one, types.UnionType):
        # Null last: what matters is what stands there otherwise.
        parts = sorted(one.types, key=lambda part: isinstance(part, types.NoneType))
        return " or ".join(_text(part, link, plural=plural) for part in parts)
    if isinstance(one, _CLASSES):
        return link(one.cls)
    if isinstance(one, _LISTS):
        return f"list{s} of {_text(one.item_type, link, plural=True)}"
    if isinstance(one, types.TupleType):
        return f"list{s} [{', '.join(_text(part, link, plural=False) for part in one.item_types)}]"
    if isinstance(one, types.DictType):
        return f"object{s} that {'have' if plural else 'has'} {_text(one.value_type, link, plural=True)} by name"
    if isinstance(one, types.LiteralType):
        return " or ".join(f"`{value}`" for value in one.values)
    if isinstance(one, types.EnumType):
        return " or ".join(f"`{member.value}`" for member in one.cls)
    return _WORDS[type(one)][plural]


def default_text(message: Message, name: str) -> str:
    """A field's default as JSON, if it is a text or a number; "" for others, and where it is empty or nothing."""
    found = types.type_info(message)
    assert isinstance(found, _CLASSES)
    field = next(one for one in found.fields if one.encode_name == name)
    value = field.default
    return msgspec.json.encode(value).decode() if isinstance(value, str | int | float) and value else ""
