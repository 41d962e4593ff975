"""A mesh state on its way between agent and core, in parts of at most MESH_PART objects."""

from __future__ import annotations

import gc
from itertools import islice
from typing import Any

from msgspec import Raw

from nodeseal.contracts.core import MESH_PART
from nodeseal.contracts.mesh import decode_difference, encode_difference
from nodeseal.mesh.model import Mesh, MeshDifference


class TransferError(Exception):
    """A part is missing, or came out of turn; the text is one line."""


class Incoming:
    """The parts that are here of a mesh state that is coming in. Nothing of it counts before it is complete."""

    def __init__(self) -> None:
        self._parts: list[MeshDifference] = []

    def add(self, number: int, part: Raw) -> None:
        """Takes a part; number 0 begins anew. Raises TransferError when another one is due, MeshError."""
        if number == 0:
            self._parts = []
        if number != len(self._parts):
            expected, self._parts = len(self._parts), []
            raise TransferError(f"part {number} of a mesh state came, part {expected} was expected")
        self._parts.append(decode_difference(part))
        # A full collection with 50,000 workloads to look at keeps the interpreter's lock, and with it every decision,
        # for some 50 ms. They make no cycles: out of the collector's sight with them.
        gc.freeze()

    def complete(self, count: int, last: Raw) -> MeshDifference:
        """The whole, of the last `count` parts and this one. Forgets all parts. Raises TransferError, MeshError."""
        before, self._parts = self._parts if count else [], []
        if count != len(before):
            raise TransferError(f"a mesh state of {count + 1} parts is complete, but {len(before) + 1} have come")
        return MeshDifference.joined([*before, decode_difference(last)])


def part_of(mesh: Mesh, first: int) -> tuple[Raw, int | None]:
    """(the model's objects from number `first` on as a difference on the wire, where the next part begins)."""
    end, before = first + MESH_PART, 0
    put: dict[str, tuple[Any, ...]] = {}
    for kind, table in mesh.tables.items():
        put[kind] = tuple(islice(table.items.values(), max(0, first - before), max(0, end - before)))
        before += len(table.items)
    return encode_difference(MeshDifference(mesh.trust_domain, put)), end if end < before else None
