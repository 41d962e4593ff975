"""What all nodes have published, as the mesh model has it. Pure.

Only a node itself says what is enrolled on it, in objects of its name. What such an object says counts until it says
something else: one that cannot be read any more is named, and counts as it was.

One name, two nodes
-------------------
A pod of a StatefulSet comes back on another node before the former one has withdrawn it. Both are true for a moment,
and each has addresses of its own, so both count: the one that was there first under its name, the other one as
"name@node" until the name is free. What this node has itself has the name always. So nobody takes a name away from a
workload.

Nodes that do not renew
-----------------------
What is published for a node that has expired (see nodeseal.sources.kubernetes.renewals) counts for nothing. Of one that
is only silent it counts, but where another node claims one of its addresses, that one has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from nodeseal.kubernetes.objects import Key
from nodeseal.mesh.address import Address
from nodeseal.mesh.trust import Trust
from nodeseal.mesh.workload import Workload, WorkloadName
from nodeseal.sources.kubernetes.mesh_objects import (
    MeshEndpoints,
    MeshNode,
    NodeStatus,
    ObjectError,
    Published,
    read_endpoints,
    read_trust,
)
from nodeseal.sources.source import Concern, Publishers, StateProblem

_Names = dict[WorkloadName, Workload]


class Publications:
    """Of all nodes. Methods that take something return the names under which there is something else in `workloads`."""

    def __init__(self, node: str) -> None:
        """`node`: whose agent this is."""
        self.workloads: _Names = {}
        """All of them, also those of `node` itself; ENROLLED. Changed in place."""
        self.publishers: Publishers = {}
        """Replaced as a whole."""
        self.nodes: dict[str, NodeStatus] = {}
        """What each says of itself."""
        self._node = node
        self._objects: dict[str, dict[str, Published]] = {}
        """By node and by the name of the object; what each said last that could be read."""
        self._trust: dict[str, Trust | None] = {}
        self._wrong: dict[str, str] = {}
        self._of_nodes: dict[str, _Names] = {}
        self._extra: dict[WorkloadName, list[str]] = {}
        """Names that several have: the nodes of those that do not go by it, in the order in which they came."""
        self._own: set[WorkloadName] = set()
        self._silent: frozenset[str] = frozenset()
        self._expired: frozenset[str] = frozenset()
        self._doubtful: dict[Address, set[str]] = {}
        """Addresses of nodes that are silent, with these."""
        self._lost: frozenset[tuple[str, Address]] = frozenset()
        """Those of them that another node claims."""

    def take_endpoints(self, found: Mapping[Key, MeshEndpoints | None]) -> set[WorkloadName]:
        """MeshEndpoints that are new or changed; None: that are gone."""
        touched: dict[str, set[WorkloadName]] = {}
        for (_, name), one in found.items():
            node = name.rpartition("-")[0]  # of one that can be read
            objects = self._objects.setdefault(node, {})
            before = objects.pop(name, None)
            self._wrong.pop(name, None)
            if one is not None:
                try:
                    objects[name] = read_endpoints(one)
                except ObjectError as error:
                    self._wrong[name] = str(error)
                    if before is not None:
                        objects[name] = before
            for said in (before, objects.get(name)):
                if said is not None:
                    touched.setdefault(node, set()).update(workload.key for workload in said.workloads)
            if not objects:
                del self._objects[node]
        changed = self._settle(touched)
        if any((node in self._objects) != (node in self.publishers) for node in touched):
            self._tell_publishers()
        return changed

    def take_nodes(self, found: Mapping[Key, MeshNode | None]) -> None:
        """MeshNodes that are new or changed; None: that are gone."""
        for (_, name), one in found.items():
            if one is None:
                self.nodes.pop(name, None)
                self._trust.pop(name, None)
            else:
                self.nodes[name] = one.status
                self._trust[name] = read_trust(one.status)
        if any(name not in self.publishers or self.publishers[name] != self._trust.get(name) for _, name in found):
            self._tell_publishers()

    def take_own(self, names: Collection[WorkloadName]) -> set[WorkloadName]:
        """The workloads of this node, whether they are published or not: nobody else goes by their names."""
        before, self._own = self._own, set(names)
        changed: set[WorkloadName] = set()
        for name in self._own - before:
            first = self.workloads.get(name)
            if first is not None and first.node != self._node:
                changed |= {*self._leave(first.node, name), *self._enter(first)}
        for name in before - self._own:
            changed |= self._promote(name)
        return changed

    def take_silence(self, silent: frozenset[str], expired: frozenset[str]) -> set[WorkloadName]:
        """The nodes that do not renew what they say, and those of them for which nothing counts any more."""
        touched = {
            node: {workload.key for said in self._objects.get(node, {}).values() for workload in said.workloads}
            for node in (self._silent ^ silent) | (self._expired ^ expired)
        }
        self._silent, self._expired = silent, expired
        changed = self._settle(touched, anew=True)
        self._tell_publishers()
        return changed

    def problems(self) -> Iterator[StateProblem]:
        """What cannot be read."""
        for _, text in sorted(self._wrong.items()):
            yield StateProblem(f"{text}; what it said before counts", Concern.PUBLICATION)
        for node, address in sorted(self._lost, key=str):
            text = f"node {node} is silent, and another one claims its address {address}, which counts for that one"
            yield StateProblem(text, Concern.PUBLICATION)

    def published_nodes(self) -> frozenset[str]:
        """All that have published something."""
        return frozenset(self._objects) | frozenset(self.nodes)

    def _said(self, node: str) -> _Names:
        """What it says now, in all of its objects. What is in two of them is the same, for a moment."""
        found: _Names = {}
        if node not in self._expired:
            for _, said in sorted(self._objects.get(node, {}).items()):
                for workload in said.workloads:
                    found.setdefault(workload.key, workload)
        return found

    def _settle(self, touched: Mapping[str, set[WorkloadName]], *, anew: bool = False) -> set[WorkloadName]:
        """Takes again what these nodes say of these names. `anew`: other nodes are silent than before."""
        changed: set[WorkloadName] = set()
        addresses: set[Address] = set()
        for node, names in touched.items():
            said = self._said(node)
            of_node = self._of_nodes.setdefault(node, {})
            for name in names:
                before, now = of_node.get(name), said.get(name)
                if before == now:
                    continue
                for one in (before, now):
                    addresses.update(one.addresses if one is not None else ())
                if now is None:
                    del of_node[name]
                    changed |= self._leave(node, name)
                else:
                    of_node[name] = now
                    changed |= self._enter(now)
            if not of_node:
                del self._of_nodes[node]
        if anew or not self._silent.isdisjoint(touched) or any(address in self._doubtful for address in addresses):
            changed |= self._doubt()
        return changed

    def _doubt(self) -> set[WorkloadName]:
        """Looks again whose the addresses of silent nodes are."""
        doubtful: dict[Address, set[str]] = {}
        for node in self._silent:
            for workload in self._of_nodes.get(node, {}).values():
                for address in workload.addresses:
                    doubtful.setdefault(address, set()).add(node)
        self._doubtful = doubtful
        lost: set[tuple[str, Address]] = set()
        if doubtful:
            for node, names in self._of_nodes.items():
                if node in self._silent:
                    continue
                for workload in names.values():
                    for address in workload.addresses:
                        lost.update((other, address) for other in doubtful.get(address, ()))
        before, self._lost = self._lost, frozenset(lost)
        changed: set[WorkloadName] = set()
        for node in {node for node, _ in before ^ self._lost}:
            for workload in self._of_nodes.get(node, {}).values():
                if any((node, address) in before ^ self._lost for address in workload.addresses):
                    changed |= self._enter(workload)
        return changed

    def _enter(self, workload: Workload) -> set[WorkloadName]:
        """It is published, as this from now on."""
        name, node = workload.key, workload.node
        if self._lost:
            kept = tuple(address for address in workload.addresses if (node, address) not in self._lost)
            if not kept:
                return self._leave(node, name)
            if kept != workload.addresses:
                workload = replace(workload, addresses=kept)
        first = self.workloads.get(name)
        changed: set[WorkloadName] = set()
        if node == self._node and first is not None and first.node != node:
            del self.workloads[name]
            changed |= self._beside(first)
            first = None
        if (first is None or first.node == node) and (node == self._node or name not in self._own):
            self.workloads[name] = workload
            return changed | {name}
        return changed | self._beside(workload)

    def _beside(self, workload: Workload) -> set[WorkloadName]:
        others = self._extra.setdefault(workload.key, [])
        if workload.node not in others:
            others.append(workload.node)
        key = _beside(workload.key, workload.node)
        self.workloads[key] = replace(workload, key=key)
        return {key}

    def _leave(self, node: str, name: WorkloadName) -> set[WorkloadName]:
        """It is not published any more."""
        first = self.workloads.get(name)
        if first is not None and first.node == node:
            del self.workloads[name]
            return {name} | self._promote(name)
        others = self._extra.get(name, [])
        if node not in others:
            return set()
        self._without(name, node)
        return {_beside(name, node)}

    def _promote(self, name: WorkloadName) -> set[WorkloadName]:
        """Whoever came next goes by the name from now on, if it is free."""
        others = self._extra.get(name)
        if not others or name in self.workloads or name in self._own:
            return set()
        node = others[0]
        workload = self._without(name, node)
        self.workloads[name] = replace(workload, key=name)
        return {name, _beside(name, node)}

    def _without(self, name: WorkloadName, node: str) -> Workload:
        others = self._extra[name]
        others.remove(node)
        if not others:
            del self._extra[name]
        return self.workloads.pop(_beside(name, node))

    def _tell_publishers(self) -> None:
        there = {**self._objects, **self._trust}
        found = {node: self._trust.get(node) for node in there if node not in self._expired}
        if found != self.publishers:
            self.publishers = found


def _beside(name: WorkloadName, node: str) -> WorkloadName:
    return WorkloadName(name.namespace, f"{name.name}@{node}")
