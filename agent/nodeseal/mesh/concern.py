"""What a change of the mesh concerns: which decisions may be others now. Pure.

A change is small, and decisions are many: a core with thousands of live peers would ask all of them again at each pod
that comes or goes anywhere. What a decision looks at (nodeseal.mesh.decide) is the workload that it is for, what is at
the address that is dialled and at the address that dials, and, where the dialled one is a service's, what is at the
addresses of its endpoints. So a changed workload concerns the connections of its own, those from and to its addresses,
and those to the services that lead to one of them. Whatever else changes concerns everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from nodeseal.mesh.address import Address
from nodeseal.mesh.leading import End, Leading
from nodeseal.mesh.model import Mesh, MeshDifference, Service, Workload
from nodeseal.mesh.service import SERVICES, Way
from nodeseal.mesh.workload import WORKLOADS, WorkloadName

T = TypeVar("T", Workload, Service)

MOST = 1024
"""Addresses, ports or workloads. What concerns more is taken for everything."""


@dataclass(frozen=True, slots=True)
class Concern:
    """Connections from or to these addresses, to these ports at whatever address, and all of these workloads."""

    addresses: frozenset[Address]
    ports: frozenset[int]
    workloads: frozenset[WorkloadName]


class Concerns:
    """Follows a mesh from change to change."""

    def __init__(self) -> None:
        self._leading = Leading()

    def begin(self, mesh: Mesh) -> None:
        """Another mesh takes the place of what there was, which concerns everything."""
        self._leading = Leading()
        for service in mesh.services.values():
            self._leading.enter(service)

    def take(self, before: Mesh, change: MeshDifference, after: Mesh) -> Concern | None:
        """What a change concerns; None: everything. `after`: what it makes of `before`. Takes time for what changes."""
        services = _changed(before.services, change.put_of(SERVICES), change.removed_of(SERVICES))
        workloads = _changed(before.workloads, change.put_of(WORKLOADS), change.removed_of(WORKLOADS))
        for old, new in services:
            if old is not None:
                self._leading.leave(old)
            if new is not None:
                self._leading.enter(new)
        others = {*change.put, *change.removed} - {WORKLOADS.name, SERVICES.name}
        if others or change.trust_domain != before.trust_domain:
            return None
        own: list[Workload] = [one for pair in workloads for one in pair if one is not None]
        addresses = {address for one in own for address in one.addresses}
        names = {one.key for one in own}
        reached = {one for pair in services for one in pair if one is not None}
        # What leads to somebody else who claims the same address leads to nobody now, or does again.
        ends: set[End] = {*names, *addresses}
        ends.update(other.key for address in addresses for mesh in (before, after) for other in mesh.claimants(address))
        reached.update(after.services[key] for key in self._leading.to(ends))
        ports = {port for service in reached for port in _node_ports(service)}
        addresses.update(address for service in reached for address in _dialled(service))
        if max(len(addresses), len(ports), len(names)) > MOST:
            return None
        return Concern(frozenset(addresses), frozenset(ports), frozenset(names))


def _changed(
    known: Mapping[WorkloadName, T], put: Iterable[T], removed: Iterable[WorkloadName]
) -> list[tuple[T | None, T | None]]:
    """(what it was, what it is) of each."""
    pairs: list[tuple[T | None, T | None]] = [(known.get(one.key), one) for one in put]
    pairs += [(known[key], None) for key in removed if key in known]
    return pairs


def _dialled(service: Service) -> Iterator[Address]:
    yield from service.addresses
    for front in service.fronts:
        yield from front.addresses


def _node_ports(service: Service) -> Iterator[int]:
    """Its ports at the addresses of all nodes."""
    for front in service.fronts:
        if front.way is Way.NODE:
            yield front.port
