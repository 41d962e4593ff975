"""The addresses from which workloads come that their nodes have published, as the C core wants them.

A peer that comes from one of them has not proven anything by that, but its handshake goes before those of addresses
that nobody has heard of (cext/src/loop/strangers.h).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nodeseal.mesh.model import Mesh, MeshDifference, Phase, Workload
from nodeseal.mesh.workload import WORKLOADS
from nodeseal.splice.native import pack_ip


class PublishedChange(NamedTuple):
    """16 bytes for each address (as in struct ns_address); an address is there once for each workload at it."""

    added: bytes
    withdrawn: bytes


def published_change(before: Mesh | None, difference: MeshDifference) -> PublishedChange:
    """What a difference to `before` changes; with None, what a first model brings. Takes time for what changes."""
    known = before.workloads if before is not None else {}
    put = difference.put_of(WORKLOADS)
    old = [known[key] for key in difference.removed_of(WORKLOADS) if key in known]
    old += [known[workload.key] for workload in put if workload.key in known]
    return PublishedChange(_packed(put), _packed(old))


def published_anew(before: Mesh | None, after: Mesh) -> PublishedChange:
    """What changes when a whole model takes the place of another."""
    old = before.workloads.values() if before is not None else ()
    return PublishedChange(_packed(after.workloads.values()), _packed(old))


def _packed(workloads: Iterable[Workload]) -> bytes:
    absent = Phase.ABSENT
    return b"".join(
        pack_ip(address) for workload in workloads if workload.phase is not absent for address in workload.addresses
    )
