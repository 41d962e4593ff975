"""The short way for large files: lists of workloads, and publications, written in the plain form that programs write.

    workloads:
    - name: shipper
      namespace: default
      address: 10.0.0.1
      enrolled: true

libyaml makes half a dozen objects of every word; a mesh state of 50,000 workloads takes seconds that way. This form is
read with a few regular expressions instead, ten times as fast. What is recognised is so little that it cannot be
mistaken: block style, one field a line, every value a word that YAML takes for a text (or true and false) or a list of
addresses, all items indented alike. Whatever is not exactly so, and everything that is wrong, is left to
nodeseal.documents.document: this module never reports a problem, it only says "not for me". Both ways must give equal
results; tests compare them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton
from sys import intern

from nodeseal.documents.document import Tag, tag_of
from nodeseal.mesh.address import Address
from nodeseal.mesh.model import Mode, OnFailure, Workload, WorkloadName

# What comes before must be such that "workloads:" at the beginning of a line can only be a field of the document: no
# text that goes on over several lines.
_HEAD = re.compile(r"(?:---\n)?(?:(?:#[^\n]*|[a-z_]+: [A-Za-z0-9][A-Za-z0-9._-]*|)\n)*workloads:\n")
_FIRST = re.compile(r" *-  *(?=[a-z_]+: )")
# The list goes on as long as lines begin with a blank or with the hyphen of an item.
_END = re.compile(r"\n(?=[^ \-])")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_NETNS = re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))(?:[A-Za-z0-9][A-Za-z0-9._-]{0,254}|/[A-Za-z0-9._/-]{1,4094})")
# YAML 1.1 takes these for truth values and for nothing; all other words with a letter first are texts.
_NO_TEXTS = frozenset({"yes", "no", "true", "false", "on", "off", "null"})
_TRUTHS = {"true": True, "false": False}
_MODES = {mode.value: mode for mode in Mode}
_ON_FAILURE = {choice.value: choice for choice in OnFailure}
_FIELDS = frozenset(
    {"name", "namespace", "service_account", "node", "address", "addresses", "netns", "enrolled", "mode", "on_failure"}
)
# What YAML would not take for a mapping with a colon at the beginning or the end.
_IPV6 = re.compile(r"[0-9a-f][0-9a-f:]{0,37}[0-9a-f]", re.IGNORECASE)
_ENTRY = r'  - "[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"\n'
_PUBLICATION = re.compile(
    rf'(?:#[^\n]*\n)?node: "([A-Za-z0-9][A-Za-z0-9._-]*)"\nenrolled:(?: \[\]\n|\n((?:{_ENTRY})+))', re.ASCII
)


class _NotPlain(Exception):
    """Something has another form, or is wrong."""


@dataclass(frozen=True, slots=True)
class PlainList:
    """`rest`: the document with an empty list of workloads, and every other line where it was. `workloads`: the items
    of that list, each with its line."""

    rest: bytes
    workloads: list[tuple[int, Workload]]


def take_plain_workloads(data: bytes) -> PlainList | None:
    """The list of workloads in a file, if all of it has the plain form and nothing is wrong with it; else None."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return None
    head = _HEAD.match(text)
    begin = _FIRST.match(text, head.end()) if head is not None else None
    if head is None or begin is None:
        return None
    items = _Items(text, head.end(), begin[0], text.count("\n", 0, head.end()) + 1)
    try:
        workloads = list(items)
    except (_NotPlain, ValueError, OSError, KeyError):
        return None
    rest = f"{text[: head.end() - 1]} []\n"
    if items.position < len(text):
        # The lines of what follows are to be what they are; the empty ones cost time as well.
        rest += "\n" * items.lines + text[items.position :]
    return PlainList(rest.encode(), workloads)


class _Items:
    """The items of a list, each with its line. At the end, `position` is that of the line after the list, and `lines`
    the number of its lines.

    Item by item rather than all at once: the pieces of a large file take more memory than the file, and a search
    through all of it keeps other threads waiting.
    """

    def __init__(self, text: str, position: int, begin: str, line: int) -> None:
        self.position = position
        self.lines = 0
        self._text = text
        self._begin = begin
        self._line = line

    def __iter__(self) -> Iterator[tuple[int, Workload]]:
        text, begin, reader = self._text, self._begin, _Reader()
        separator, following = "\n" + " " * len(begin), "\n" + begin
        end = len(text)
        while self.position < end:
            if not text.startswith(begin, self.position):
                raise _NotPlain
            first = self.position + len(begin)
            stop = text.find(following, first)
            if stop < 0 and not text.endswith("\n"):
                raise _NotPlain
            stop = stop if stop >= 0 else end - 1
            fields = text[first:stop].split(separator)
            try:
                workload = reader.workload(fields)
            except (_NotPlain, ValueError, OSError, KeyError):
                # Perhaps it is the last one, and what follows does not belong to it.
                found = _END.search(text, first, stop + 1)
                if found is None or found.end() >= end or not "a" <= text[found.end()] <= "z":
                    raise
                stop, end = found.start(), found.end()
                fields = text[first:stop].split(separator)
                workload = reader.workload(fields)
            yield self._line + self.lines, workload
            self.lines += len(fields)
            self.position = stop + 1


class _Reader:
    """Makes workloads of fields; remembers what it has checked, since most values come again and again."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def workload(self, fields: list[str]) -> Workload:
        """Of ["name: shipper", "namespace: default", ...]. Raises _NotPlain, ValueError, OSError, KeyError."""
        if "addresses:" in fields:
            fields = _with_addresses_in_brackets(fields)
        values = dict(field.split(": ") for field in fields)
        if len(values) != len(fields) or not values.keys() <= _FIELDS:
            raise _NotPlain
        netns = values.get("netns")
        return Workload(
            WorkloadName(self._name(values.get("namespace", "default")), _text(values["name"], _NAME)),
            self._name(values.get("service_account", "default")),
            self._name(values["node"]),
            _addresses(values),
            None if netns is None else _text(netns, _NETNS),
            _TRUTHS[values.get("enrolled", "false")],
            _MODES[values.get("mode", "permissive")],
            on_failure=_ON_FAILURE[values.get("on_failure", "closed")],
        )

    def _name(self, text: str) -> str:
        known = self._names.get(text)
        if known is None:
            known = self._names[text] = intern(_text(text, _NAME))
        return known


def _text(text: str, pattern: re.Pattern[str]) -> str:
    """The word itself, if it matches and is a text in YAML. Raises _NotPlain."""
    if pattern.fullmatch(text) is None or text.lower() in _NO_TEXTS:
        raise _NotPlain
    if text[0].isdigit() and tag_of(text) is not Tag.TEXT:
        raise _NotPlain
    return text


def _with_addresses_in_brackets(fields: list[str]) -> list[str]:
    """["addresses:", "- 10.0.0.1", "- fd00::1"], as PyYAML writes it, becomes "addresses: [10.0.0.1, fd00::1]"."""
    first = fields.index("addresses:") + 1
    end = first
    while end < len(fields) and fields[end].startswith("- "):
        end += 1
    items = [field[2:] for field in fields[first:end]]
    if any("," in item for item in items):
        raise _NotPlain
    return [*fields[: first - 1], f"addresses: [{', '.join(items)}]", *fields[end:]]


def _addresses(values: dict[str, str]) -> tuple[Address, ...]:
    """As nodeseal.documents.schema.Fields.addresses, in a tenth of the time. Raises ValueError, OSError, _NotPlain."""
    if "addresses" not in values:
        return (_address(values["address"]),)
    text = values["addresses"]
    if "address" in values or not (text.startswith("[") and text.endswith("]")):
        raise _NotPlain
    addresses = tuple(map(_address, text[1:-1].split(", ")))
    if len(addresses) > 2 or (len(addresses) == 2 and addresses[0].version == addresses[1].version):
        raise _NotPlain
    return addresses


def _address(text: str) -> Address:
    if ":" not in text:
        packed = inet_pton(AF_INET, text)
        if packed[0] == 127 or packed[0] >= 224 or packed == b"\0\0\0\0":
            raise _NotPlain
        return IPv4Address(int.from_bytes(packed, "big"))
    if _IPV6.fullmatch(text) is None:
        raise _NotPlain
    packed = inet_pton(AF_INET6, text)
    # Multicast, link-local; and the low end, where ::, ::1 and the mapped IPv4 addresses are.
    if packed[0] == 0xFF or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80) or packed[:8] == bytes(8):
        raise _NotPlain
    return IPv6Address(int.from_bytes(packed, "big"))


def take_plain_publication(data: bytes) -> tuple[str, list[WorkloadName]] | None:
    """(node, names) of a publication as nodeseal.sources.directory.publications.publish writes it; else None."""
    try:
        match = _PUBLICATION.fullmatch(data.decode("ascii"))
    except UnicodeDecodeError:
        return None
    if match is None or not data.decode("ascii").partition("\n")[0].isprintable():
        return None
    names = []
    for entry in (match[2] or "").splitlines():
        namespace, _, name = entry[5:-1].partition("/")
        names.append(WorkloadName(intern(namespace), name))
    return match[1], names
