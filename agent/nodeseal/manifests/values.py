"""The values of a chart: defaults, what files and the command line put over them, and whether they are right. Pure.

As Helm does it: mappings are merged, everything else is replaced, and null takes a key away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import fastjsonschema

from nodeseal.documents.document import Problems
from nodeseal.documents.plain import read_plain

Values = dict[str, Any]

_KEY = re.compile(r"(?:[^.=\\]|\\.)+")


class ValuesError(Exception):
    """Values cannot be used; one line a problem."""


def read_values(data: bytes, name: str | PurePath) -> Values:
    """Of a file. Raises ValuesError."""
    problems = Problems(str(name))
    found = read_plain(data, problems)
    if found is None:
        raise ValuesError("\n".join(map(str, problems.found)))
    return found


def read_setting(text: str) -> Values:
    """Of "a.b=value", where the value is YAML; a dot that belongs to a key has a backslash before it. Raises
    ValuesError."""
    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(rf"{_KEY.pattern}(?:\.{_KEY.pattern})*", path):
        raise ValuesError(f"--set {text}: expected key=value, such as agent.resources.limits.memory=1Gi")
    keys = [re.sub(r"\\(.)", r"\1", key) for key in _KEY.findall(path)]
    found = read_values(b"value: " + value.encode(), f"--set {path}")["value"]
    for key in reversed(keys):
        found = {key: found}
    return dict(found)


def over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """`base` with `changes`."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(before := result.get(key), Mapping):
            result[key] = over(before, value)
        else:
            result[key] = value
    return result


def check(values: Values, schema: bytes) -> None:
    """By a JSON schema. Raises ValuesError."""
    validate = fastjsonschema.compile(json.loads(schema), use_default=False, use_formats=False)
    try:
        validate(values)
    except fastjsonschema.JsonSchemaValueException as error:
        raise ValuesError(str(error.message).replace("data.", "", 1).replace("data ", "the values ", 1)) from None
