"""Lists of network plugins (*.conflist of CNI) as texts: an entry is put into one and taken out again. Pure.

What is ours is put into the text, and nothing else of it changes: other tools' fields, their order, spaces and line
ends stay, and taking the entry out leaves the text as it was, byte for byte. So the text is read here by places:
json.JSONDecoder.raw_decode says where a value ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nodeseal.contracts.pod_start import PLUGIN, VERSIONS

CONVERTED = "nodeseal"
"""The field of a list that was made of another tool's *.conf: the name of that file."""
_SPACE = " \t\r\n"
_decoder = json.JSONDecoder()

IsOurs = Callable[[Mapping[str, Any]], bool]


class ListError(ValueError):
    """The text is no list of plugins that the entry can be in; one line."""


@dataclass(frozen=True, slots=True)
class _Plugin:
    """An element of the list and where it stands."""

    value: Any
    begin: int
    end: int


def with_entry(text: str, entry: Mapping[str, Any], is_ours: IsOurs) -> str:
    """The list with exactly this entry of ours: where one was, or else behind the last. Raises ListError."""
    plugins = _plugins(text)
    _check_version(json.loads(text))
    ours = [plugin for plugin in plugins if _is(plugin.value, is_ours)]
    if len(ours) == 1 and ours[0].value == entry:
        return text
    text = without_entry(text, is_ours)
    plugins = _plugins(text)
    if not plugins:
        raise ListError("it has no plugin that makes a network")
    last = plugins[-1]
    before = _space_before(text, last.begin)
    return f"{text[: last.end]},{before}{_rendered(entry, before)}{text[last.end :]}"


def without_entry(text: str, is_ours: IsOurs) -> str:
    """The list without any entry of ours. Raises ListError."""
    while True:
        plugins = _plugins(text)
        places = [place for place, plugin in enumerate(plugins) if _is(plugin.value, is_ours)]
        if not places:
            return text
        place = places[-1]
        if place > 0:
            text = text[: plugins[place - 1].end] + text[plugins[place].end :]
        elif len(plugins) > 1:
            text = text[: plugins[0].begin] + text[plugins[1].begin :]
        else:
            text = text[: plugins[0].begin] + text[plugins[0].end :]


def has_entry(text: str, is_ours: IsOurs) -> bool:
    """Raises ListError."""
    return any(_is(plugin.value, is_ours) for plugin in _plugins(text))


def converted(text: str, file_name: str, entry: Mapping[str, Any]) -> str:
    """A list of the one plugin of a *.conf, and the entry behind it. Raises ListError."""
    conf = _object(text)
    if not isinstance(conf.get("type"), str) or not isinstance(conf.get("name"), str):
        raise ListError("it is the configuration of no plugin: it has no 'type' and 'name'")
    _check_version(conf)
    made = {"cniVersion": conf["cniVersion"], "name": conf["name"], CONVERTED: file_name, "plugins": [conf, entry]}
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def converted_from(text: str) -> str | None:
    """The name of the file that a list of ours was made of; None: it is another's. Raises ListError."""
    name = _object(text).get(CONVERTED)
    return name if isinstance(name, str) else None


def names_plugin(text: str) -> bool:
    """Whether the plugin is named anywhere, in a part for yet another tool too, and in a text that is no JSON."""
    return PLUGIN in text


def _is(value: Any, is_ours: IsOurs) -> bool:
    return isinstance(value, dict) and value.get("type") == PLUGIN and is_ours(value)


def _check_version(values: Mapping[str, Any]) -> None:
    version = values.get("cniVersion")
    if version not in VERSIONS:
        raise ListError(f"its cniVersion is {json.dumps(version)}; chained plugins need one of {', '.join(VERSIONS)}")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ListError(f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ListError("it is no JSON object")
    return value


def _plugins(text: str) -> list[_Plugin]:
    """Raises ListError."""
    _object(text)
    found = [(begin, end) for name, begin, end in _members(text) if name == "plugins"]
    # Of several the last one counts, as in Go.
    if not found or text[found[-1][0]] != "[":
        raise ListError("it has no list 'plugins'")
    return list(_elements(text, found[-1][0]))


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, where its value begins, where that ends) of an object that json.loads has taken."""
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        name, at = _decoder.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _value, end = _decoder.raw_decode(text, begin)
        yield name, begin, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _elements(text: str, at: int) -> Iterator[_Plugin]:
    """Of a list that begins there."""
    at = _skip(text, at + 1)
    while text[at] != "]":
        value, end = _decoder.raw_decode(text, at)
        yield _Plugin(value, at, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _space_before(text: str, at: int) -> str:
    begin = at
    while text[begin - 1] in _SPACE:
        begin -= 1
    return text[begin:at]


def _rendered(entry: Mapping[str, Any], before: str) -> str:
    """Indented as what stands before it."""
    if "\n" not in before:
        return json.dumps(entry, ensure_ascii=False)
    indent = before.rpartition("\n")[2]
    end = "\r\n" if "\r\n" in before else "\n"
    step: int | str = "\t" if indent.endswith("\t") else 2
    return json.dumps(entry, indent=step, ensure_ascii=False).replace("\n", end + indent)
