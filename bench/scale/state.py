"""Mesh states of any size, as text: the bench's own pods, and workloads on nodes that are nowhere."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from nodeseal_lab.plan import NAMESPACE, Pod

WORKLOADS_PER_NODE = 100
FAR_FILE = "far.json"
_FAR_NETWORK = IPv4Address("10.128.0.0")
_SERVICE_ACCOUNTS = 40
_NAMESPACES = 20


@dataclass(frozen=True, slots=True)
class FarWorkload:
    """One of a mesh's other workloads, by its number."""

    number: int

    @property
    def node(self) -> str:
        return f"far{self.number // WORKLOADS_PER_NODE:04}"

    @property
    def namespace(self) -> str:
        return f"team-{self.number % _NAMESPACES}"

    @property
    def name(self) -> str:
        return f"app{self.number // 100}-{(self.number * 2654435761) & 0xFFFFFFFF:08x}"

    @property
    def address(self) -> IPv4Address:
        return _FAR_NETWORK + self.number

    @property
    def enrolled(self) -> bool:
        """Every other one."""
        return self.number % 2 == 0

    def entry(self, mode: str = "permissive") -> dict[str, object]:
        """Its entry in a list of workloads."""
        return {
            "name": self.name,
            "namespace": self.namespace,
            "service_account": f"app-{self.number % _SERVICE_ACCOUNTS}",
            "node": self.node,
            "address": str(self.address),
            "enrolled": self.enrolled,
            "mode": mode,
        }


def far_state(count: int, *, strict: int | None = None) -> bytes:
    """A file with `count` far workloads; number `strict` is in mode strict, all others are permissive."""
    entries = [FarWorkload(n).entry("strict" if n == strict else "permissive") for n in range(count)]
    return json.dumps({"workloads": entries}).encode()


def far_publications(count: int, *, without: int | None = None) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the publications of all far nodes, in the form in which agents write them."""
    for first in range(0, count, WORKLOADS_PER_NODE):
        workloads = [FarWorkload(n) for n in range(first, min(first + WORKLOADS_PER_NODE, count))]
        names = sorted(f"{w.namespace}/{w.name}" for w in workloads if w.enrolled and w.number != without)
        node = workloads[0].node
        lines = [f"# Written by the agent of {node}; do not edit.", f'node: "{node}"', "enrolled:"]
        yield f"{node}.yaml", ("\n".join([*lines, *(f'  - "{name}"' for name in names)]) + "\n").encode()


def near_state(pods: Iterable[Pod], enrolled: Collection[str]) -> str:
    """The file of the bench's own pods: those named in `enrolled` are wanted."""
    parts = ["workloads:\n"]
    for pod in pods:
        parts.append(
            f"- name: {pod.name}\n"
            f"  namespace: {NAMESPACE}\n"
            f"  service_account: {pod.name}\n"
            f"  node: {pod.node}\n"
            f"  address: {pod.address}\n"
            f"  netns: {pod.netns}\n"
            f"  enrolled: {'true' if pod.name in enrolled else 'false'}\n"
            f"  mode: permissive\n"
        )
    return "".join(parts)
