"""Typed values out of a document's nodes. Every reader notes what is wrong and goes on, so that all errors are seen.

A reader that notes a problem returns a stand-in of the right type: whoever builds something from the values looks at
the number of problems before and after, and throws it away if there are more.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from nodeseal.documents.document import (
    Broken,
    List,
    Mapping,
    Node,
    Problem,
    Problems,
    Scalar,
    Tag,
    describe,
    read_content,
    read_document,
    shown,
)
from nodeseal.mesh.address import Address, AddressError, parse_address
from nodeseal.mesh.spiffe import SpiffeIdError, check_trust_domain

__all__ = ["Fields", "Problem", "Problems", "is_name", "open_document", "read_name", "read_text", "unusable"]

_is_name = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?").fullmatch
_TRUST_DOMAIN_EXPECTED = "a trust domain of a-z, 0-9, '.', '_' and '-'"
_NAME_EXPECTED = "1 to 253 characters of a-z, A-Z, 0-9, '.', '_' and '-', a letter or digit first and last"
_TRUE = frozenset({"yes", "true", "on"})
_NOT_OF_INTERFACES = frozenset({127, *range(224, 256)})
_ANY_ADDRESS: Address = IPv4Address(0)
_ADDRESS_EXPECTED = "an IPv4 or IPv6 address"

_Choice = TypeVar("_Choice", bound=StrEnum)


def open_document(path: Path, problems: Problems) -> "Fields | None":
    """The fields of the mapping that a YAML file holds; None after noting why there are none."""
    content = read_content(path, problems.file)
    problems.extend(content.problems)
    root = None if content.data is None else read_document(content.data, problems)
    return None if root is None else Fields(problems, root)


def read_text(problems: Problems, node: Node, field: str, expected: str = "a text") -> str:
    """A text; a number or a truth value has to be in quotes to be one. Notes a problem and returns "" otherwise."""
    if isinstance(node, Scalar) and node.tag is Tag.TEXT and node.text:
        return node.text
    if not isinstance(node, Broken):
        quotes = isinstance(node, Scalar) and node.tag not in (Tag.TEXT, Tag.NOTHING)
        problems.add(node.line, field, expected, describe(node) + (" (put it in quotes)" if quotes else ""))
    return ""


def is_name(text: str) -> bool:
    """Whether a text is a name, see read_name."""
    return _is_name(text) is not None


def read_name(problems: Problems, node: Node, field: str) -> str:
    """A name as Kubernetes allows them, and a little more: safe in a file name, a SPIFFE id, a table."""
    text = read_text(problems, node, field, "a name")
    if text and not is_name(text):
        problems.add(node.line, field, _NAME_EXPECTED, shown(text))
    return text


class Fields:
    """The fields of one mapping. Read every known one, then call `close`, which notes the unknown ones."""

    def __init__(self, problems: Problems, node: Node, path: str = "") -> None:
        self.problems = problems
        self.path = path
        self.line = node.line
        self._known: list[str] = []
        self._entries: dict[str, Node] = {}
        self._broken = not isinstance(node, Mapping)
        if isinstance(node, Mapping):
            self._entries = node.entries
        elif not isinstance(node, Broken):
            problems.add(node.line, path, "a mapping", describe(node))

    def at(self, name: str) -> str:
        """The path of a field from the document's root, as messages show it."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return name in self._entries

    def line_of(self, name: str) -> int:
        """The line of a field's value; the mapping's own when the field is absent."""
        return self._entries[name].line if name in self._entries else self.line

    def node(self, name: str, expected: str, *, required: bool) -> Node | None:
        """The field's node, or None if it is absent, which is a problem if it is required."""
        self._known.append(name)
        node = self._entries.get(name)
        if node is None and required and not self._broken:
            self.problems.add(self.line, self.at(name), expected, "nothing")
        return node

    def name(self, name: str, default: str | None = None) -> str:
        """A name; required if there is no default."""
        node = self.node(name, "a name", required=default is None)
        return (default or "") if node is None else read_name(self.problems, node, self.at(name))

    def text(self, name: str, default: str | None = None, *, expected: str = "a text", pattern: str = "") -> str:
        """A text, matching `pattern` as a whole if there is one; required if there is no default."""
        node = self.node(name, expected, required=default is None)
        if node is None:
            return default or ""
        text = read_text(self.problems, node, self.at(name), expected)
        if text and pattern and re.fullmatch(pattern, text) is None:
            self.problems.add(node.line, self.at(name), expected, shown(text))
        return text

    def trust_domain(self, default: str | None = None, *, expected: str) -> str:
        """The field `trust_domain`; required if there is no default."""
        name = "trust_domain"
        text = self.text(name, default, expected=expected)
        if text:
            try:
                check_trust_domain(text)
            except SpiffeIdError:
                self.problems.add(self.line_of(name), self.at(name), _TRUST_DOMAIN_EXPECTED, shown(text))
        return text

    def truth(self, name: str, default: bool) -> bool:
        """true or false (YAML 1.1 also has yes, no, on and off)."""
        node = self.node(name, "true or false", required=False)
        if node is None:
            return default
        if isinstance(node, Scalar) and node.tag is Tag.TRUTH:
            return node.text.lower() in _TRUE
        self.wrong(node, name, "true or false")
        return default

    def integer(self, name: str, default: int | None, low: int, high: int, expected: str) -> int:
        """A decimal number from `low` to `high`, both at least 0; required if there is no default."""
        node = self.node(name, expected, required=default is None)
        if node is None:
            return low if default is None else default
        # The length comes first: int() of a million digits takes seconds.
        if isinstance(node, Scalar) and node.tag is Tag.INTEGER and len(node.text) <= len(str(high)):
            plain = re.fullmatch(r"0|[1-9][0-9]*", node.text) is not None
            if plain and low <= int(node.text) <= high:
                return int(node.text)
        self.wrong(node, name, expected)
        return low

    def port(self, name: str, default: int | None = None) -> int:
        """A port; required if there is no default."""
        return self.integer(name, default, 1, 65535, "a port from 1 to 65535")

    def choice(self, name: str, default: _Choice) -> _Choice:
        """One of the values of the default's enumeration."""
        kind = type(default)
        expected = " or ".join(member.value for member in kind)
        node = self.node(name, expected, required=False)
        if node is None:
            return default
        if isinstance(node, Scalar) and node.tag is Tag.TEXT:
            for member in kind:
                if member.value == node.text:
                    return member
        self.wrong(node, name, expected)
        return default

    def addresses(self, most: int = 0) -> tuple[Address, ...]:
        """The required addresses of one application or service: `address`, or the list `addresses` in its stead.

        `most`: how many there may be, each once; 0 for one, or one of each family.
        """
        single = self.node("address", _ADDRESS_EXPECTED, required="addresses" not in self._entries)
        several = self.node("addresses", "a list of addresses", required=False)
        if single is not None and several is not None:
            self.problems.add(several.line, self.at("addresses"), "either 'address' or 'addresses'", "both")
        if several is None:
            return (_ANY_ADDRESS if single is None else self._address(single, self.at("address")),)
        where = self.at("addresses")
        expected = f"1 to {most} addresses, each once" if most else "one address, or one of each family"
        nodes = several.items if isinstance(several, List) else ()
        if not isinstance(several, List):
            self.wrong(several, "addresses", expected)
        elif not 1 <= len(nodes) <= (most or 2):
            self.problems.add(several.line, where, expected, f"a list of {len(nodes)}")
            return (_ANY_ADDRESS,)
        before = self.problems.count
        addresses = tuple(self._address(node, f"{where}[{index}]") for index, node in enumerate(nodes))
        if self.problems.count != before:
            return addresses
        if most and (twice := next((one for one in addresses if addresses.count(one) > 1), None)):
            self.problems.add(several.line, where, expected, f"{twice} twice")
        elif not most and len({address.version for address in addresses}) != len(addresses):
            self.problems.add(several.line, where, expected, f"two IPv{addresses[0].version} addresses")
        return addresses

    def _address(self, node: Node, where: str) -> Address:
        """An address that one application can have: not a network's, a group's or the loopback's."""
        expected = _ADDRESS_EXPECTED
        # A number in base sixty for YAML 1.1 may be an address: 2001:20:30:10:5:6:7:8.
        if isinstance(node, Scalar) and node.tag in (Tag.TEXT, Tag.INTEGER) and len(node.text) <= 45:
            try:
                address = parse_address(node.text)
            except AddressError:
                pass
            else:
                expected = unusable(address)
                if not expected:
                    return address
        if not isinstance(node, Broken):
            self.problems.add(node.line, where, expected, describe(node))
        return _ANY_ADDRESS

    def items(self, name: str, expected: str, *, required: bool) -> Sequence[Node]:
        """The items of a list."""
        node = self.node(name, expected, required=required)
        if isinstance(node, List):
            return node.items
        if node is not None:
            self.wrong(node, name, expected)
        return ()

    def close(self) -> None:
        """Notes every field that nobody asked for, with the known one that looks most like it."""
        for name in (name for name in self._entries if name not in self._known):
            near = get_close_matches(name[:60], self._known, 1)
            expected = f"'{near[0]}'" if near else f"only {', '.join(sorted(self._known))}"
            where = self.at(name) if name.isidentifier() and len(name) <= 60 else self.path
            self.problems.add(self._entries[name].line, where, expected, f"the unknown field {shown(name)}")

    def wrong(self, node: Node, name: str, expected: str) -> None:
        """Notes that a field is not what is expected."""
        if not isinstance(node, Broken):
            self.problems.add(node.line, self.at(name), expected, describe(node))


def unusable(address: Address) -> str:
    """What is expected instead of this address; "" if an application can have it."""
    if isinstance(address, IPv4Address):
        # Unspecified, loopback, and from 224.0.0.0 on multicast and reserved (RFC 6890): in a tenth of the time that
        # the properties take, of which a mesh state needs 200,000.
        number = int(address)
        return "an IPv4 address of an interface" if not number or number >> 24 in _NOT_OF_INTERFACES else ""
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        return "an IPv6 address of an interface"
    if address.ipv4_mapped is not None:
        return f"{address.ipv4_mapped}, as IPv4"
    return "an address that is valid beyond the link" if address.is_link_local else ""
