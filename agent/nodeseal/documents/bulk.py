"""The bulk form of a mesh state's file: JSON, as programs write it, read quickly.

What is wrong is not found out here: JSON is YAML as well (but for what no field of a mesh state may hold), and the
reader of YAML tells every mistake with its line. So this reader takes what is right, and of everything else says that
it is not, or not surely.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Raw

from nodeseal.documents.document import MAX_DEPTH, Problems, node_of
from nodeseal.documents.readers import READERS

TRUST_DOMAIN = "trust_domain"
_VALUES_MAX = 1_500_000
"""Most values of a file that is read here: a list of as many small ones as fit into a file would take a gigabyte."""

_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_PLACE = re.compile(r"JSON is malformed: (.*) \(byte ([0-9]+)\)")
_CUT_OFF = "Input data was truncated"
_TYPES = re.compile(r"Expected `([^`]*)`, got `([^`]*)`(?: - at `\$([^`]*)`)?")


class NotTakenError(Exception):
    """Something is not as it should be: what, as far as it is known (`line` from 1, or 0; `field` may be empty).

    `final`: nobody needs to look again. `sure`: it is wrong, whatever a more patient reader says.
    """

    def __init__(
        self, expected: str, found: str, *, field: str = "", line: int = 0, final: bool = False, sure: bool = True
    ) -> None:
        super().__init__(f"{field}: expected {expected}, found {found}")
        self.expected = expected
        self.found = found
        self.field = field
        self.line = line
        self.final = final
        self.sure = sure


@dataclass(frozen=True, slots=True)
class Bulk:
    """What a file says: `lists` has the objects of each kind that it names."""

    trust_domain: str | None
    lists: Mapping[str, list[Any]]


def read_bulk(data: bytes) -> Bulk:
    """Raises NotTakenError."""
    data = data.removeprefix(BOM_UTF8)
    if data.count(b",") > _VALUES_MAX:
        raise NotTakenError(f"at most {_VALUES_MAX} values", "more", sure=False)
    try:
        # Of unknown fields, which may be as many as fit into a file, the first one ends it.
        names = Literal[TRUST_DOMAIN, *READERS]  # type: ignore[valid-type]
        return _take(data, msgspec.json.decode(data, type=dict[names, str | list[Raw]]))
    except msgspec.ValidationError as error:
        raise _not_taken("", error) from None
    except msgspec.DecodeError as error:
        raise _not_json(data, error) from None
    except RecursionError:
        raise NotTakenError(f"at most {MAX_DEPTH} levels of lists and mappings", "more", final=True) from None


def _take(data: bytes, fields: dict[str, str | list[Raw]]) -> Bulk:
    # Of a key that is there twice the first value is lost, and with it some of the text's quotation marks.
    quotes = 2 * len(fields)
    trust_domain: str | None = None
    lists: dict[str, list[Any]] = {}
    for name, value in fields.items():
        if name in READERS and isinstance(value, list):
            lists[name], more = _take_list(name, value)
            quotes += more
        elif name == TRUST_DOMAIN and isinstance(value, str):
            trust_domain = value
            quotes += 2
        else:
            raise NotTakenError("a field of a mesh state", "another one, or another type of it", field=name)
    if quotes != _quotes(data):
        raise NotTakenError("each field once", "one of them again", sure=False)
    return Bulk(trust_domain, lists)


def _take_list(name: str, entries: list[Raw]) -> tuple[list[Any], int]:
    """(the objects, how many quotation marks they are written with)."""
    reader = READERS[name]
    take, decode = reader.take, msgspec.json.Decoder(reader.entry).decode
    objects, quotes = [], 0
    # One by one: the pieces of a large file take more memory than the file.
    for index, raw in enumerate(entries):
        try:
            entry = decode(raw)
        except msgspec.DecodeError as error:
            raise _not_taken(f"{name}[{index}]", error) from None
        item = take(entry)
        if item is None:
            problems = Problems(name)
            item = reader.read(problems, node_of(_decode_any(raw)), f"{name}[{index}]")
            if problems.found:
                first = problems.found[0]
                raise NotTakenError(first.expected, first.found, field=first.field)
        objects.append(item)
        quotes += _quotes(_encode(entry))
    return objects, quotes


def _not_taken(where: str, error: msgspec.DecodeError) -> NotTakenError:
    match = _TYPES.match(str(error))
    if match is None:
        return NotTakenError("something else", str(error), field=where)
    return NotTakenError(match[1], match[2], field=where + (match[3] or ""))


def _not_json(data: bytes, error: msgspec.DecodeError) -> NotTakenError:
    match = _PLACE.match(str(error))
    if match is None and str(error) != _CUT_OFF:
        return NotTakenError("JSON", str(error))
    at = int(match[2]) if match else len(data.rstrip())
    line, column = data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at)
    found = match[1] if match else "the end of the file"
    return NotTakenError("JSON", f"{found} at column {column}", line=line, final=True)


def _quotes(data: bytes) -> int:
    """How many marks begin or end a text. (With a backslash before the last one it is one less, here as there.)"""
    return data.count(b'"') - data.count(b'\\"')
