"""What passes by the core, in words: a part of `nodeseal status`."""

from __future__ import annotations

from collections.abc import Sequence

from nodeseal.contracts.status import Status, WorkloadRow

_ADDRESSES_SHOWN = 4
_NODE = "from-node"
_COUNTS = (
    ("excluded-inbound", "excluded inbound"),
    ("excluded-outbound", "excluded outbound"),
    ("outside-mesh", "to addresses outside the mesh"),
    ("application-mark", "with a mark of the application's own"),
)


def lines(status: Status) -> list[str]:
    """For one node: what its workloads exclude, and how many connections passed by the core, if any did."""
    excluded = [f"{one.workload} excludes {'; '.join(parts)}" for one in status.workloads if (parts := _excluded(one))]
    counts = status.past_core
    parts = [f"{counts[_NODE]} from the node{_node(status.node_addresses)}"] if counts.get(_NODE) else []
    parts += [f"{counts[key]} {text}" for key, text in _COUNTS if counts.get(key)]
    return excluded + ([f"past the core since capture began: {', '.join(parts)}"] if parts else [])


def _excluded(workload: WorkloadRow) -> list[str]:
    exclude = workload.exclude
    if exclude is None:
        return []
    directions = (
        ("inbound", exclude.inbound.ports, "from", exclude.inbound.sources),
        ("outbound", exclude.outbound.ports, "to", exclude.outbound.destinations),
    )
    parts = []
    for name, ports, preposition, networks in directions:
        pieces = []
        if ports:
            pieces.append(f"port{'s' if len(ports) > 1 or '-' in ports[0] else ''} {', '.join(ports)}")
        if networks:
            pieces.append(f"{preposition} {', '.join(networks)}")
        if pieces:
            parts.append(f"{name} {' or '.join(pieces)}")
    return parts


def _node(addresses: Sequence[str]) -> str:
    """ " (10.0.0.1, 10.0.0.2 and 7 more)"."""
    if not addresses:
        return ""
    more = len(addresses) - _ADDRESSES_SHOWN
    return f" ({', '.join(addresses[:_ADDRESSES_SHOWN])}{f' and {more} more' if more > 0 else ''})"
