"""Keeping the kernel's map of what bypasses the core at what the mesh state and the node's addresses say.

(And the rules of the iptables backend, which can leave alone what comes in; what its workloads dial goes to the core,
which decides.)

The map tells of every enrolled workload of the mesh that it is one, and what it excludes; of this node's workloads what
they exclude as long as they are in the mesh state, so that it is in place before they are captured. And it tells what
is certain to be outside the mesh, which no address of the mesh state is, unless it is named and not enrolled. Changes
are found by comparing models, which share what has not changed: a large mesh costs little.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from ipaddress import ip_network

from nodeseal.capture.bypass import (
    Entries,
    exclusion_entries,
    extent_entries,
    inside_entries,
    node_entries,
    owner_of,
    peer_entries,
)
from nodeseal.enrolment.capture_thread import CaptureThread
from nodeseal.enrolment.service_entries import ServiceEntries
from nodeseal.linux import addresses
from nodeseal.linux.addresses import in_order
from nodeseal.linux.errors import LinuxError
from nodeseal.local.config import NodeAddresses
from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions
from nodeseal.mesh.extent import Extent
from nodeseal.mesh.fronts import leads_to_a_peer, services_at
from nodeseal.mesh.model import Mesh, Mode, Workload, WorkloadName, difference
from nodeseal.mesh.workload import WORKLOADS

log = logging.getLogger("nodeseal.agent")

_RETRY_S = 1.0
NO_EXTENT = Extent()


class BypassKeeper:
    """Puts the changes in, in threads: nobody else waits for a large one."""

    def __init__(self, capture: CaptureThread, node: str, wanted: NodeAddresses, extent: Extent = NO_EXTENT) -> None:
        self.local: frozenset[Address] = frozenset()
        """The node's own addresses, as far as they count."""
        self._extent = extent
        self._capture = capture
        self._node = node
        self._wanted = wanted
        self._lock = asyncio.Lock()
        self._mesh: Mesh | None = None
        # What the map holds: a mesh, its services, the node.
        self._done: tuple[Mesh, ServiceEntries, Entries] | None = None
        self._told: dict[str, Excluded] | None = None  # what the iptables backend was told
        self._again: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Nothing is tried again by itself from here on."""
        if self._again is not None:
            self._again.cancel()
        if self._task is not None:
            self._task.cancel()

    def is_node(self, address: Address) -> bool:
        """Whether connections from this address count as the node's."""
        return address in self.local or any(address in network for network in self._wanted.trusted)

    def is_outside(self, mesh: Mesh, address: Address) -> bool:
        """Whether connections to this address are let go because it is certain to be outside the mesh."""
        if not self._extent.is_outside(address):
            return False
        workloads = [one for one in (mesh.by_address.get(address), *mesh.hosts.get(address, ())) if one is not None]
        services = services_at(mesh, address)
        if any(one.accepts_tunnels for one in workloads) or any(leads_to_a_peer(mesh, one) for one in services):
            return False
        known = bool(workloads or services or mesh.nodes.claimants(address))
        return self._extent.names(address) or not known

    def excluded(self, name: WorkloadName) -> Exclusions:
        """What the workload excludes, as far as it is in force."""
        workload = self._done[0].workloads.get(name) if self._done is not None else None
        return workload.exclude if workload is not None else NO_EXCLUSIONS

    def shown(self) -> list[str]:
        """What counts as the node, for the status."""
        return [str(item) for item in (*in_order(self.local), *self._wanted.trusted)]

    async def follow_local(self) -> None:
        """Keeps to the node's addresses as they are. Never ends."""
        async for found in addresses.follow():
            log.info("addresses of the node: %s", ", ".join(map(str, in_order(found))))
            await self.set_local(found)

    async def set_local(self, local: frozenset[Address]) -> None:
        """The node's addresses are these now."""
        self.local = local
        await self._bring()

    async def take(self, mesh: Mesh | None) -> None:
        """What the core decides by. Never raises: what fails is logged and tried again."""
        if mesh is not None:
            self._mesh = mesh
            await self._bring()

    async def _bring(self) -> None:
        async with self._lock:
            mesh = self._mesh
            if mesh is None:
                return
            try:
                if self._capture.has_rules and (inbound := self._inbound(mesh)) != self._told:
                    await self._capture.set_bypass(inbound)
                    self._told = inbound
                self._done = await asyncio.to_thread(self._apply, mesh, self.local)
            except LinuxError as error:
                log.error("%s; trying again", error)
                self._done = self._told = None
                self._again = asyncio.get_running_loop().call_later(_RETRY_S, self._bring_again)

    def _bring_again(self) -> None:
        self._task = asyncio.create_task(self._bring(), name="bypass")

    def _apply(self, mesh: Mesh, local: frozenset[Address]) -> tuple[Mesh, ServiceEntries, Entries]:
        node = node_entries(local, self._wanted.trusted) | extent_entries(self._extent)
        done = self._done
        if done is None:
            services = ServiceEntries(self._extent, mesh)
            self._capture.bypass.replace(self._workloads(mesh, mesh.workloads.values()) | services.entries | node)
            return mesh, services, node
        old, services, old_node = done
        change = difference(old, mesh)
        came, went = services.follow(old, change, mesh) if change.size else ({}, set())
        changed = list(change.put_of(WORKLOADS))
        gone = [old.workloads[key] for key in change.removed_of(WORKLOADS)]
        gone += [old.workloads[item.key] for item in changed if item.key in old.workloads]
        # What is contested, or no longer, concerns all who claim it, whether they have changed or not.
        for address in {*old.contested, *mesh.contested} if change.size else ():
            gone += old.claimants(address)
            changed += mesh.claimants(address)
        put = self._workloads(mesh, changed)
        put |= came
        put |= {key: value for key, value in node.items() if old_node.get(key) != value}
        remove = self._workloads(old, gone).keys() | went
        remove |= old_node.keys() - node.keys()
        # An address may have passed from one to the other, or be shared by others that stay.
        neighbours = [one for hosts in mesh.hosts.values() for one in hosts] if gone else []
        for address in map(owner_of, went):
            neighbours += (*mesh.claimants(address), *mesh.hosts.get(address, ()))
        remove -= put.keys() | self._workloads(mesh, neighbours).keys()
        remove = {key for key in remove if key not in services.entries}
        if put or remove:
            self._capture.bypass.change(put, remove)
        return mesh, services, node

    def _inbound(self, mesh: Mesh) -> dict[str, Excluded]:
        """What comes in and is left to the applications of this node by rules, which see addresses alone: so the node's
        own are left out where that is a promise to refuse all others.
        """
        local = tuple(ip_network(address) for address in in_order(self.local))
        found = {}
        for workload in mesh.workloads.values():
            if workload.node == self._node:
                node = self._wanted.trusted if workload.mode is Mode.STRICT else self._wanted.trusted + local
                inbound = workload.exclude.inbound
                found[str(workload.key)] = Excluded(inbound.ports, inbound.networks + node)
        return found

    def _workloads(self, mesh: Mesh, workloads: Iterable[Workload]) -> Entries:
        entries: Entries = {}
        contested = mesh.contested
        for workload in workloads:
            if self._extent:
                entries |= inside_entries(workload.addresses, self._extent)
            addresses = workload.addresses
            if contested:
                # What passes by at an address is one's alone to say.
                addresses = tuple(one for one in addresses if one not in contested)
            if workload.accepts_tunnels:
                shared = workload.host is not None
                entries |= peer_entries(addresses, workload.exclude, shared=shared)
                if addresses is not workload.addresses:
                    entries |= peer_entries(set(workload.addresses) - set(addresses), NO_EXCLUSIONS)
            elif workload.node == self._node and workload.exclude:
                entries |= exclusion_entries(addresses, workload.exclude)
        return entries
