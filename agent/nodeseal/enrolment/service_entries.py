"""What the map of what bypasses the core says of services, kept up from change to change.

The addresses of a service that leads to somebody enrolled are a peer's: what dials them may be led there, and is
captured although the workload excludes it. Nothing is certain to be outside at an address of a service, nor at a
node's, where services may be dialled as well. But addresses that are a node's, or a workload's own, are no peer's
because of a service: the map knows addresses alone, and what the node may do at its own, its probes above all, would
end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nodeseal.capture.bypass import Entries, inside_entries, peer_entries
from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS
from nodeseal.mesh.extent import Extent
from nodeseal.mesh.fronts import leads_to_a_peer, services_at
from nodeseal.mesh.kinds import K, Kind, T
from nodeseal.mesh.leading import End, Leading
from nodeseal.mesh.model import Mesh, MeshDifference, Service, WorkloadName
from nodeseal.mesh.node import NODES
from nodeseal.mesh.service import SERVICES, Way
from nodeseal.mesh.workload import WORKLOADS

_SHARED = (Way.LOAD_BALANCER, Way.EXTERNAL)


class ServiceEntries:
    """Of one mesh at a time. Takes time for what changes."""

    def __init__(self, extent: Extent, mesh: Mesh) -> None:
        self.entries: Entries = {}
        """All."""
        self._extent = extent
        self._leading = Leading()
        self._shared: dict[WorkloadName, frozenset[Address]] = {}  # addresses that may be others' as well
        self._of: dict[WorkloadName | None, Entries] = {}  # of each service; None: of the nodes
        self._wanted: dict[bytes, int] = {}  # by how many: services may share an address
        self._came: Entries = {}
        self._went: set[bytes] = set()
        for service in mesh.services.values():
            self._enter(service)
            self._look_at(mesh, service.key)
        self._look_at_nodes(mesh)

    def follow(self, before: Mesh, change: MeshDifference, after: Mesh) -> tuple[Entries, set[bytes]]:
        """(the entries that have come, the keys of those that have gone) by a change that makes `after` of `before`."""
        self._came, self._went = {}, set()
        put, removed = change.put_of(SERVICES), change.removed_of(SERVICES)
        touched = {*(service.key for service in put), *removed}
        for key in touched:
            if key in before.services:
                self._leave(before.services[key])
            if key in after.services:
                self._enter(after.services[key])
        workloads = list(_changed(before.workloads, WORKLOADS, change))
        services = [one for mesh in (before, after) for key in touched if (one := mesh.services.get(key)) is not None]
        moved = {address for one in workloads for address in one.addresses}
        moved.update(address for one in _changed(before.of(NODES), NODES, change) for address in one.addresses)
        ends: set[End] = {*moved, *(one.key for one in workloads)}
        # Who claims the same address as one that changes is led to no more, or again.
        ends.update(one.key for address in moved for mesh in (before, after) for one in mesh.claimants(address))
        touched |= self._leading.to(ends)
        moved.update(address for service in services for address in _addresses(service))
        touched.update(key for key, addresses in self._shared.items() if not moved.isdisjoint(addresses))
        for key in touched:
            self._look_at(after, key)
        if NODES.name in change.put or NODES.name in change.removed:
            self._look_at_nodes(after)
        return self._came, self._went

    def _enter(self, service: Service) -> None:
        self._leading.enter(service)
        shared = frozenset(address for front in service.fronts if front.way in _SHARED for address in front.addresses)
        if shared:
            self._shared[service.key] = shared

    def _leave(self, service: Service) -> None:
        self._leading.leave(service)
        self._shared.pop(service.key, None)

    def _look_at(self, mesh: Mesh, key: WorkloadName) -> None:
        service = mesh.services.get(key)
        if service is None:
            self._change(key, {})
            return
        addresses = {one for one in _addresses(service) if service in services_at(mesh, one)}
        entries = peer_entries(addresses, NO_EXCLUSIONS) if leads_to_a_peer(mesh, service) else {}
        if self._extent:
            # One that leads to nobody enrolled is led somewhere by the core.
            entries |= inside_entries(addresses, self._extent)
        self._change(key, entries)

    def _look_at_nodes(self, mesh: Mesh) -> None:
        if self._extent:
            self._change(None, inside_entries(mesh.nodes, self._extent))

    def _change(self, key: WorkloadName | None, entries: Entries) -> None:
        wanted = self._wanted
        for one in self._of.pop(key, ()):
            wanted[one] -= 1
            if not wanted[one]:
                del wanted[one]
                del self.entries[one]
                if one in self._came:
                    del self._came[one]
                else:
                    self._went.add(one)
        for one, value in entries.items():
            if one not in wanted:
                self.entries[one] = value
                if one in self._went:
                    self._went.discard(one)
                else:
                    self._came[one] = value
            wanted[one] = wanted.get(one, 0) + 1
        if entries:
            self._of[key] = entries


def _addresses(service: Service) -> Iterator[Address]:
    yield from service.addresses
    for front in service.fronts:
        yield from front.addresses


def _changed(known: Mapping[K, T], kind: Kind[K, T], change: MeshDifference) -> Iterator[T]:
    """What is there no more, and what is new in its place."""
    put = change.put_of(kind)
    yield from put
    for key in (*(one.key for one in put), *change.removed_of(kind)):
        if key in known:
            yield known[key]
