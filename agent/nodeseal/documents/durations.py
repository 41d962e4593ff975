"""Durations in a document: a number and a unit, such as 500ms, 30s or 7d."""

from __future__ import annotations

import re
from datetime import timedelta

from nodeseal.documents.schema import Fields

NONE = "none"
"""The word for no duration at all, where one may be left out."""

_UNITS = {"us": 0.000001, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(us|ms|s|m|h|d)"
_EXPECTED = "a duration such as 30s, 10m, 24h or 7d"


def parse_duration(text: str) -> timedelta:
    """Raises ValueError, whose text says what is expected."""
    match = re.fullmatch(_DURATION, text)
    if match is None:
        raise ValueError(f"{_EXPECTED} is expected, {text[:40]!a} was found")
    # Nine digits of days are more than a timedelta holds.
    return timedelta(seconds=min(float(match[1]) * _UNITS[match[2]], timedelta.max.days * 86400.0))


def read_duration(fields: Fields, name: str, default: str, low: timedelta, high: timedelta) -> timedelta:
    """A duration from `low` to `high`; of a field that is absent, the default's."""
    before = len(fields.problems.found)
    text = fields.text(name, default, expected=_EXPECTED, pattern=_DURATION)
    if len(fields.problems.found) > before or re.fullmatch(_DURATION, text) is None:
        return low
    value = parse_duration(text)
    if not low <= value <= high:
        fields.problems.add(
            fields.line_of(name), fields.at(name), f"a duration from {shown(low)} to {shown(high)}", text
        )
    return value


def read_optional_duration(fields: Fields, name: str, low: timedelta, high: timedelta) -> timedelta | None:
    """None for the word `none`, which is the default."""
    text = fields.text(name, NONE, expected=f"{_EXPECTED}, or {NONE}", pattern=f"{NONE}|{_DURATION}")
    if text == NONE or not re.fullmatch(_DURATION, text):
        return None
    return read_duration(fields, name, text, low, high)


def shown(value: timedelta) -> str:
    """In the largest unit that needs no fraction."""
    if not value:
        return "0s"
    sizes = sorted(((timedelta(seconds=seconds), unit) for unit, seconds in _UNITS.items()), reverse=True)
    return next(f"{value // size}{unit}" for size, unit in sizes if not value % size)
