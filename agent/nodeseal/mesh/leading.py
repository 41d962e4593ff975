"""Which services lead to whom: their endpoints the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from nodeseal.mesh.address import Address
from nodeseal.mesh.model import Service
from nodeseal.mesh.workload import WorkloadName

End: TypeAlias = WorkloadName | Address
"""What an endpoint of a service is named by."""


class Leading:
    """Services by their endpoints. Follows a mesh from change to change."""

    def __init__(self) -> None:
        # Tuples: most have one, and a large mesh has one for each of its pods.
        self._keys: dict[End, tuple[WorkloadName, ...]] = {}

    def enter(self, service: Service) -> None:
        """There is this service from now on."""
        key = service.key
        for end in ends_of(service):
            self._keys[end] = (*self._keys.get(end, ()), key)

    def leave(self, service: Service) -> None:
        """There is none any more as this one was; it has been entered."""
        for end in ends_of(service):
            keys = tuple(key for key in self._keys[end] if key != service.key)
            if keys:
                self._keys[end] = keys
            else:
                del self._keys[end]

    def to(self, ends: Iterable[End]) -> set[WorkloadName]:
        """The services that lead to one of these."""
        return {key for end in ends for key in self._keys.get(end, ())}


def ends_of(service: Service) -> set[End]:
    """What its endpoints are named by."""
    ends: set[End] = set(service.endpoints)
    for front in service.fronts:
        ends.update(one.address for one in front.endpoints)
        ends.update(one.address for group in front.by_node or () for one in group.endpoints)
    return ends
