"""A message's fields as the reference shows them: their JSON names, types and what they mean."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect as types

Struct = type[msgspec.Struct]
Link = Callable[[Struct], str]
"""How another message is named where a field has one."""


@dataclass(frozen=True, slots=True)
class Field:
    """`default`: as JSON, None for a field that must be there; `meaning`: "" where the name says it."""

    name: str
    type: types.Type
    default: str | None
    meaning: str


def summary(message: Struct) -> str:
    """The message's docstring in one line."""
    return " ".join(inspect.getdoc(message).split()) if message.__doc__ else ""


def fields(message: Struct) -> list[Field]:
    """The fields in their order."""
    meanings = _meanings(message)
    found = types.type_info(message)
    assert isinstance(found, types.StructType)
    return [Field(one.encode_name, one.type, _default(one), meanings.get(one.name, "")) for one in found.fields]


def messages(*roots: Struct) -> list[Struct]:
    """These and those that their fields have, each once, in the order in which a reader meets them."""
    found: dict[Struct, None] = {}
    for root in roots:
        for message in _below(root):
            found.setdefault(message)
    return list(found)


def type_text(one: types.Type, link: Link) -> str:
    """Such as "list of strings"."""
    return _text(one, link, plural=False)


def _below(message: Struct) -> Iterator[Struct]:
    yield message
    for one in fields(message):
        for child in _structs(one.type):
            if child is not message:
                yield from _below(child)


def _structs(one: types.Type) -> Iterator[Struct]:
    if isinstance(one, types.StructType):
        yield one.cls
    elif isinstance(one, types.UnionType):
        for part in one.types:
            yield from _structs(part)
    elif isinstance(one, types.DictType):
        yield from _structs(one.value_type)
    elif isinstance(one, types.ListType | types.VarTupleType | types.SetType | types.FrozenSetType):
        yield from _structs(one.item_type)


_WORDS: dict[type[types.Type], tuple[str, str]] = {
    types.BoolType: ("true or false", "true or false"),
    types.IntType: ("integer", "integers"),
    types.FloatType: ("number", "numbers"),
    types.StrType: ("string", "strings"),
    types.NoneType: ("null", "null"),
    types.AnyType: ("anything", "anything"),
    types.RawType: ("anything", "anything"),
}


def _text(one: types.Type, link: Link, *, plural: bool) -> str:
    if isinstance(one, types.UnionType):
        # Null last: what matters is what stands there otherwise.
        parts = sorted(one.types, key=lambda part: isinstance(part, types.NoneType))
        return " or ".join(_text(part, link, plural=plural) for part in parts)
    if isinstance(one, types.StructType):
        return link(one.cls)
    if isinstance(one, types.ListType | types.VarTupleType | types.SetType | types.FrozenSetType):
        return f"list{'s' if plural else ''} of {_text(one.item_type, link, plural=True)}"
    if isinstance(one, types.DictType):
        return f"object{'s' if plural else ''} of {_text(one.value_type, link, plural=True)} by name"
    if isinstance(one, types.LiteralType):
        return " or ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in one.values)
    if isinstance(one, types.EnumType):
        return " or ".join(f'`"{member.value}"`' for member in one.cls)
    return _WORDS[type(one)][plural]


def _default(one: types.Field) -> str | None:
    if one.required:
        return None
    value: Any = one.default if one.default is not msgspec.NODEFAULT else one.default_factory()
    return "" if value is msgspec.UNSET else msgspec.json.encode(value).decode()


@functools.cache
def _meanings(message: Struct) -> dict[str, str]:
    """Field -> the string below it in the source (PEP 258, attribute docstrings), of the message and its bases."""
    found: dict[str, str] = {}
    for one in reversed(message.__mro__):
        if not issubclass(one, msgspec.Struct) or one is msgspec.Struct:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = re.sub(r"\s+", " ", text.value.value).strip()
    return found
