"""YAML as the values that JSON knows, for what is handed on as it is: dictionaries, lists, texts, numbers."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nodeseal.documents.document import Broken, List, Mapping, Node, Problems, Scalar, Tag, describe, read_document

_DEPTH = 24
"""A pod's affinity alone has ten levels."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_REAL = re.compile(r"[-+]?[0-9]{1,18}\.[0-9]{0,18}(e[-+]?[0-9]{1,3})?")
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_plain(data: bytes, problems: Problems) -> dict[str, Any] | None:
    """The one document of a file, a mapping; None after noting a problem."""
    before = problems.count
    document = read_document(data, problems, depth=_DEPTH)
    value = _plain(document, problems, "") if document is not None else None
    return value if problems.count == before else None


def to_yaml(value: Any) -> str:
    """Without a newline at its end, keys in their order."""
    text: str = yaml.dump(value, Dumper=_DUMPER, default_flow_style=False, width=1 << 30, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(node: Node, problems: Problems, field: str) -> Any:
    match node:
        case Mapping():
            return {key: _plain(item, problems, f"{field}.{key}".lstrip(".")) for key, item in node.entries.items()}
        case List():
            return [_plain(item, problems, f"{field}[{index}]") for index, item in enumerate(node.items)]
        case Scalar(tag=Tag.TEXT):
            return node.text
        case Scalar(tag=Tag.NOTHING):
            return None
        case Scalar(tag=Tag.TRUTH) if node.text in _TRUE | _FALSE:
            return node.text in _TRUE
        case Scalar(tag=Tag.INTEGER) if _INTEGER.fullmatch(node.text):
            return int(node.text)
        case Scalar(tag=Tag.REAL) if _REAL.fullmatch(node.text):
            return float(node.text)
        case Broken():
            return None
    # What readers of YAML do not agree on: `on`, 1_000, 0x10, dates.
    problems.add(node.line, field, "a text in quotes, a number, true, false or null", describe(node))
    return None
