"""The field `exclude` of a workload: ports and ranges of addresses that pass by nodeseal.

exclude:
  inbound: {ports: [9090, "8000-8010"], from: ["10.0.0.0/8", "fd00::/8"]}
  outbound: {ports: [5432], to: ["169.254.169.254/32"]}
"""

import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network
from typing import TypeVar

from nodeseal.documents.document import Broken, Node, Problems, Scalar, Tag, describe, shown
from nodeseal.documents.schema import Fields
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, Network, PortRange

MAX_ITEMS = 64
"""Most items of one list: each is some entries in a table of the kernel's, on every node."""

_PORT_EXPECTED = 'a port from 1 to 65535, or a range of them such as "8000-8010"'
_NETWORK_EXPECTED = "an address or a range of addresses such as 10.0.0.0/8 or fd00::/8"
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_RANGE = re.compile(r"([1-9][0-9]{0,4})-([1-9][0-9]{0,4})")
# No zone. A number in base sixty for YAML 1.1 may be an address: 2001:20:30:10:5:6:7:8.
_ADDRESS = re.compile(r"[0-9A-Fa-f.:/]{2,49}")

_Item = TypeVar("_Item")
_Read = Callable[[Problems, Node, str], _Item | None]


def read_exclusions(workload: Fields, name: str = "exclude") -> Exclusions:
    """The field `name` of a workload; none excludes nothing."""
    node = workload.node(name, "a mapping with 'inbound', 'outbound' or both", required=False)
    if node is None:
        return NO_EXCLUSIONS
    fields = Fields(workload.problems, node, workload.at(name))
    exclusions = Exclusions(_direction(fields, "inbound", "from"), _direction(fields, "outbound", "to"))
    fields.close()
    return exclusions


def read_network(problems: Problems, node: Node, field: str, expected: str = _NETWORK_EXPECTED) -> Network | None:
    """An address or a range of addresses; None after noting a problem."""
    if isinstance(node, Scalar) and node.tag in (Tag.TEXT, Tag.INTEGER) and _ADDRESS.fullmatch(node.text):
        with suppress(ValueError):
            return ip_network(node.text)
        with suppress(ValueError):
            expected = f"a range that begins where its prefix says ({ip_network(node.text, strict=False)})"
    _wrong(problems, node, field, expected)
    return None


def _direction(exclude: Fields, name: str, networks: str) -> Excluded:
    node = exclude.node(name, f"a mapping with 'ports', '{networks}' or both", required=False)
    if node is None:
        return NO_EXCLUSIONS.inbound
    fields = Fields(exclude.problems, node, exclude.at(name))
    ports = read_items(fields, "ports", "a list of ports", read_ports)
    excluded = Excluded(ports, read_items(fields, networks, "a list of ranges", read_network))
    fields.close()
    return excluded


def read_items(fields: Fields, name: str, expected: str, read: _Read[_Item]) -> tuple[_Item, ...]:
    """The items of a list, each once and few enough; () if it is absent, or after noting a problem."""
    problems = fields.problems
    nodes = fields.items(name, expected, required=False)
    if len(nodes) > MAX_ITEMS:
        problems.add(fields.line_of(name), fields.at(name), f"at most {MAX_ITEMS} items", str(len(nodes)))
        return ()
    found: dict[_Item, None] = {}
    for index, node in enumerate(nodes):
        field = f"{fields.at(name)}[{index}]"
        item = read(problems, node, field)
        if item is None:
            continue
        if item in found:
            problems.add(node.line, field, "each once", f"{item} again")
        found[item] = None
    return tuple(found)


def read_ports(problems: Problems, node: Node, field: str) -> PortRange | None:
    """A port or a range of ports; None after noting a problem."""
    expected = _PORT_EXPECTED
    if isinstance(node, Scalar):
        if node.tag is Tag.INTEGER and _PORT.fullmatch(node.text) and int(node.text) <= 65535:
            return PortRange(int(node.text), int(node.text))
        match = _RANGE.fullmatch(node.text) if node.tag is Tag.TEXT else None
        if match is not None:
            first, last = int(match[1]), int(match[2])
            if first <= last <= 65535:
                return PortRange(first, last)
            if last < first:
                expected = "a range whose first port is not behind its last"
    _wrong(problems, node, field, expected)
    return None


def _wrong(problems: Problems, node: Node, field: str, expected: str) -> None:
    if not isinstance(node, Broken):
        found = shown(node.text) if isinstance(node, Scalar) and node.tag is Tag.TEXT else describe(node)
        problems.add(node.line, field, expected, found)
