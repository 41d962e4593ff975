"""Checks who includes whom in the C core (`make lint`): status 1 and a line for each fault.

A file pair such as flow/relay.c and flow/relay.h is one part. The rules:

* No part includes itself by way of others: each can be read, and tested, without those above it.
* Folders stand in the order of FOLDERS: a part includes parts of its own folder and of those before.
* wire/ includes no header of sockets or of epoll: bytes in, bytes out.
* The parts of HTTP2_FREE reach no header of HTTP2, however indirectly: to a flow, a stream is its far side.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
FOLDERS = ("base", "keys", "wire", "limits", "decisions", "balance", "loop", "flow", "core")
SOCKETS = {"sys/socket.h", "sys/epoll.h", "sys/un.h", "netinet/in.h", "netinet/tcp.h", "netdb.h"}
HTTP2_FREE = ("flow/flow", "flow/relay", "flow/route")
HTTP2 = {"wire/h2", "wire/frames", "wire/message"}
INCLUDE = re.compile(r'^#include ["<]([^">]+)[">]', re.MULTILINE)

Graph = Mapping[str, frozenset[str]]


def main() -> int:
    """The exit status."""
    found = list(faults(SOURCES))
    for fault in found:
        print(f"include_graph: {fault}", file=sys.stderr)
    return 1 if found else 0


def faults(sources: Path) -> Iterator[str]:
    """A line for each fault of the C files under `sources`."""
    files = {str(path.relative_to(sources)): _included(path) for path in sorted(sources.rglob("*.[ch]"))}
    parts: dict[str, frozenset[str]] = {}
    headers: dict[str, frozenset[str]] = {}
    for name, included in files.items():
        own = {_part(other) for other in included if other in files}
        part = _part(name)
        parts[part] = parts.get(part, frozenset()) | own - {part}
        headers[name] = frozenset(included & files.keys())
    for circle in circles(parts):
        yield f"a circle: {' -> '.join(circle)}"
    for part, below in parts.items():
        for other in sorted(below):
            if _place(other) > _place(part):
                yield f"{part} includes {other}, of a folder above its own"
    for name, included in files.items():
        if name.startswith("wire/") and included & SOCKETS:
            yield f"{name} includes {', '.join(sorted(included & SOCKETS))}: sockets are not for wire/"
        if _part(name) in HTTP2_FREE:
            for reached in sorted({_part(header) for header in _reached(headers, name)} & HTTP2):
                yield f"{name} reaches {reached}.h: HTTP/2 is not for it"


def circles(graph: Graph) -> Iterator[list[str]]:
    """Ways that lead from a node back to it, each ending where it begins; none for what lies on an earlier one."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> Iterator[list[str]]:
        if node in way:
            yield [*way[way.index(node) :], node]
        elif node not in done:
            for other in sorted(graph[node]):
                yield from walk(other, [*way, node])
            done.add(node)

    for node in sorted(graph):
        yield from walk(node, [])


def _included(path: Path) -> set[str]:
    return set(INCLUDE.findall(path.read_text(encoding="utf-8")))


def _part(name: str) -> str:
    return name.removesuffix(".c").removesuffix(".h")


def _place(part: str) -> int:
    return FOLDERS.index(part.partition("/")[0])


def _reached(graph: Graph, name: str) -> set[str]:
    reached: set[str] = set()
    left = [name]
    while left:
        new = graph[left.pop()] - reached
        reached |= new
        left += new
    return reached


if __name__ == "__main__":
    sys.exit(main())
