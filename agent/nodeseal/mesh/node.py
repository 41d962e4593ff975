"""Nodes: one kind of objects of the mesh model. Decisions need their addresses, because a service's node port is
dialled at any of them."""

from dataclasses import dataclass

from nodeseal.mesh.address import Address
from nodeseal.mesh.claims import ClaimIndex
from nodeseal.mesh.kinds import Kind, MeshError


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the mesh. A mesh whose services have no node ports may have none."""

    key: str
    """Its name, as workloads have it."""
    addresses: tuple[Address, ...]


def _read_name(text: str) -> str:
    if not text:
        raise MeshError("a node without a name")
    return text


NODE_BY_ADDRESS: ClaimIndex[Address, Node] = ClaimIndex("node_by_address", "node address", lambda node: node.addresses)
"""Its own space: the processes of a node have its addresses as well. A node port is one at whichever of two nodes."""

NODES: Kind[str, Node] = Kind("nodes", "node", _read_name, (NODE_BY_ADDRESS,))
