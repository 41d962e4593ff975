"""Which services have to be decided anew: a service leads to what several objects say together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from nodeseal.kubernetes.objects import EndpointSlice, Key, Service
from nodeseal.mesh.service import Service as MeshService
from nodeseal.mesh.workload import WorkloadName
from nodeseal.sources.kubernetes.services import Here, KnownEndpoints, service_key_of, service_of


class ServiceTable:
    """`services` and `slices` are changed in place by whoever follows them."""

    def __init__(self, node: str, services: Mapping[Key, Service], slices: Mapping[Key, EndpointSlice]) -> None:
        self._here = Here(node)
        self._services = services
        self._slices = slices
        self._of_service: dict[Key, set[Key]] = {}
        """Service -> its slices."""
        self._service_of: dict[Key, Key] = {}
        self._dirty: set[Key] = set()
        self._known = KnownEndpoints()
        self._problems: dict[Key, tuple[str, ...]] = {}

    def services_changed(self, keys: Iterable[Key]) -> None:
        """These have."""
        self._dirty |= set(keys)

    def slices_changed(self, keys: Iterable[Key]) -> None:
        """These have: their services are decided anew, and those that they were of before."""
        for key in keys:
            part = self._slices.get(key)
            if part is None:
                self._known.forget(key)
            before = self._service_of.get(key)
            now = service_key_of(part) if part is not None else None
            if before is not None and before != now:
                self._of_service[before].discard(key)
                if not self._of_service[before]:
                    del self._of_service[before]
                del self._service_of[key]
            if now is not None:
                self._of_service.setdefault(now, set()).add(key)
                self._service_of[key] = now
            self._dirty |= {one for one in (before, now) if one is not None}

    def moved(self, here: Here) -> None:
        """The node is in this zone."""
        if here != self._here:
            self._here = here
            self._dirty |= self._services.keys()

    def refresh(self, most: int) -> dict[WorkloadName, MeshService | None]:
        """What may have changed since, of at most so many: each as it is now. Nothing: that was all."""
        found: dict[WorkloadName, MeshService | None] = {}
        while self._dirty and len(found) < most:
            key = self._dirty.pop()
            name = WorkloadName(*key)
            service = self._services.get(key)
            self._problems.pop(key, None)
            if service is None:
                found[name] = None
                continue
            slices = (self._slices[one] for one in self._of_service.get(key, ()) if one in self._slices)
            read = service_of(service, slices, self._here, self._known)
            found[name] = read.service
            if read.problems:
                self._problems[key] = read.problems
        return found

    def problems(self) -> Iterator[str]:
        """What of them is passed over."""
        for _, texts in sorted(self._problems.items()):
            yield from texts
