"""Limits as they are written in the configuration and in the mesh state.

limits:
  connections: 20000        # a number
  memory: 256MiB            # bytes, or with KiB, MiB or GiB
  new_connections: none     # none, or 0: no limit
"""

from __future__ import annotations

import re
from typing import Final

from nodeseal.documents.document import Scalar, Tag
from nodeseal.documents.schema import Fields
from nodeseal.mesh.limits import NO_LIMIT, UNCHANGED, LimitChanges

_NONE = "none"
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"(0|[1-9][0-9]{0,11})(KiB|MiB|GiB)")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")
_COUNT_MAX = 100_000_000
_MEMORY_MIN, _MEMORY_MAX = 1 << 20, 1 << 44
"""Below one stream's window nothing could run."""


def read_limits(fields: Fields, name: str) -> LimitChanges:
    """The field `name`, a mapping; what it does not say is unchanged. Problems are noted with the fields."""
    node = fields.node(name, "a mapping of limits", required=False)
    if node is None:
        return UNCHANGED
    inner = Fields(fields.problems, node, fields.at(name))
    changes = LimitChanges(
        connections=_limit(inner, "connections", 1, _COUNT_MAX, "a number of connections, or none"),
        memory=_limit(inner, "memory", _MEMORY_MIN, _MEMORY_MAX, "a size from 1MiB such as 256MiB, or none"),
        new_connections=_limit(inner, "new_connections", 1, _COUNT_MAX, "a number of connections in a second, or none"),
    )
    inner.close()
    return changes


def read_size(fields: Fields, name: str, low: int, high: int, expected: str) -> int | None:
    """A number of bytes; None when there is none, or it is no limit."""
    return _limit(fields, name, low, high, expected) or None


def _limit(fields: Fields, name: str, low: int, high: int, expected: str) -> int | None:
    node = fields.node(name, expected, required=False)
    if node is None:
        return None
    if isinstance(node, Scalar):
        value = _value(node)
        if value == NO_LIMIT or (value is not None and low <= value <= high):
            return value
    fields.wrong(node, name, expected)
    return None


def _value(node: Scalar) -> int | None:
    if node.tag is Tag.INTEGER and _NUMBER.fullmatch(node.text) is not None:
        return int(node.text)
    if node.tag is not Tag.TEXT:
        return None
    if node.text == _NONE:
        return NO_LIMIT
    match = _SIZE.fullmatch(node.text)
    return int(match[1]) * _UNITS[match[2]] if match is not None else None
