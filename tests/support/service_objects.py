"""The rows of support/service_rows.py as the mesh model has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from nodeseal.kubernetes import objects
from nodeseal.mesh.model import Service
from nodeseal.mesh.node import Node
from nodeseal.sources.kubernetes.services import Here, node_of, service_key_of, service_of
from support.service_rows import Json, World

HERE = Here("node1", "zone-a")
"""The node of the client, and its zone."""


def services_of(manifests: Iterable[Json], here: Here = HERE) -> list[Service]:
    """As one who follows the API makes them: each of its own object and of all slices that name it. Fails the test if
    there is anything wrong with one."""
    found: list[objects.Service] = []
    slices: list[objects.EndpointSlice] = []
    for manifest in manifests:
        if manifest["kind"] == "Service":
            found.append(msgspec.convert(manifest, objects.Service))
        else:
            slices.append(msgspec.convert(manifest, objects.EndpointSlice))
    read = [service_of(one, [part for part in slices if service_key_of(part) == one.key], here) for one in found]
    assert [problem for one in read for problem in one.problems] == []
    return [one.service for one in read if one.service is not None]


def nodes_of(world: World) -> Sequence[Node]:
    """node1, node2 and node3 with all addresses that the world has for them."""
    return [_node(name, world) for name in ("node1", "node2", "node3")]


def _node(name: str, world: World) -> Node:
    addresses = [{"type": "Hostname", "address": name}]
    for kind, place in (("InternalIP", name), ("InternalIP", f"{name}/6"), ("ExternalIP", f"{name}-external")):
        if place in world.addresses:
            addresses.append({"type": kind, "address": world.addresses[place]})
    manifest = {"metadata": {"name": world.nodes[name]}, "status": {"addresses": addresses}}
    return node_of(msgspec.convert(manifest, objects.Node))
