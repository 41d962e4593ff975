"""Workloads: one kind of objects of the mesh model.

A model knows phases from two sides. For workloads of other nodes there are two: ENROLLED (their node has published
them) and ABSENT. For the workloads of its own node the agent puts in all four with `Mesh.with_phases`.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from nodeseal.mesh.address import Address
from nodeseal.mesh.claims import ClaimIndex
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Exclusions
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.kinds import Clash, GroupIndex, Kind, MeshError
from nodeseal.mesh.limits import UNCHANGED, LimitChanges
from nodeseal.mesh.spiffe import Identity, SpiffeId, SpiffeIdError


class WorkloadName(NamedTuple):
    """The key of a workload or a service. A tuple, because models with many workloads hash millions of them."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "namespace/name". Raises MeshError."""
        namespace, slash, name = text.partition("/")
        if not slash or not namespace or not name or "/" in name:
            raise MeshError(f"{text[:80]!a} is not of the form namespace/name")
        return cls(namespace, name)


class Mode(StrEnum):
    """What a workload does with plaintext from those who could not have used a tunnel."""

    PERMISSIVE = "permissive"
    STRICT = "strict"


class OnFailure(StrEnum):
    """What becomes of a captured workload's new connections while neither an agent nor a core of its node runs."""

    CLOSED = "closed"
    """They wait, and fail in the end."""
    OPEN = "open"
    """They go direct, as if it were not enrolled. Enrolled peers refuse them all the same."""


class Connect(StrEnum):
    """When a connection that a captured workload dials is made for its application."""

    TRUTHFUL = "truthful"
    """When the far application's kernel has accepted it; what fails there fails here."""
    EARLY = "early"
    """At once, by the core. What fails later ends it."""


class PlaintextWay(StrEnum):
    """The way of connections of a captured workload that are decided to be plaintext."""

    NATIVE = "native"
    """From kernel to kernel, once they are decided."""
    PROXIED = "proxied"
    """Through the core."""


class Phase(StrEnum):
    """How far a workload is on its way into the mesh or out of it."""

    ABSENT = "absent"
    """Not enrolled."""
    JOINING = "joining"
    """Captured and published; other nodes may not have seen it yet, so their plaintext is still accepted."""
    ENROLLED = "enrolled"
    """Everybody has had time to see it: plaintext from enrolled workloads is refused."""
    LEAVING = "leaving"
    """Withdrawn; still captured and still accepting tunnels, so that other nodes have time to see it."""


# Every decision about a tunnel names an identity, and checking one anew costs more than the rest of the decision.
_identity = functools.lru_cache(maxsize=1024)(SpiffeId)

MOST_ADDRESSES = 32
"""That one workload may have: each is entered in maps of every node."""

_ACCEPTS_TUNNELS = frozenset({Phase.JOINING, Phase.ENROLLED})


@dataclass(frozen=True, slots=True)
class Workload:
    """One application instance, with addresses of its own unless it is one of the node's own processes (`host`)."""

    key: WorkloadName
    service_account: str
    node: str
    addresses: tuple[Address, ...]
    """At least one, at most MOST_ADDRESSES, each once. The first of each family is its primary."""
    netns: str | None
    """Path of its network namespace, or a name under /run/netns. Needed on its own node only."""
    wanted: bool
    """The mesh state asks for it to be enrolled. Whether it is, says `phase`."""
    mode: Mode
    phase: Phase = Phase.ABSENT
    exclude: Exclusions = NO_EXCLUSIONS
    on_failure: OnFailure = OnFailure.CLOSED
    limits: LimitChanges = UNCHANGED
    """What it may take of its node's core, where that is not what the node gives to all."""
    host: HostPlace | None = None
    """For a process of the node: it shares the node's address with others. None: it has a network namespace."""
    connect: Connect | None = None
    """None: as its node has it."""
    trust_domain: str | None = None
    """Of its identity, if it is not the mesh's own."""
    spiffe_id: Identity | None = None
    """Its whole identity, if it is of another trust domain whose ids may have other paths; then `trust_domain` is its
    own as well."""

    @property
    def own_addresses(self) -> tuple[Address, ...]:
        """Those that stand for it alone."""
        return self.addresses if self.host is None else ()

    @property
    def address(self) -> Address:
        """The first of its addresses."""
        return self.addresses[0]

    def address_like(self, other: Address) -> Address:
        """Its primary address of the family of `other`; the first that it has if there is none."""
        addresses = self.addresses
        version = other.version
        if addresses[0].version != version:
            for address in addresses:
                if address.version == version:
                    return address
        return addresses[0]

    def addresses_like(self, other: Address) -> tuple[Address, ...]:
        """All of its addresses of the family of `other`."""
        return tuple(address for address in self.addresses if address.version == other.version)

    @property
    def primaries(self) -> tuple[Address, ...]:
        """The first of each family."""
        return primaries_of(self.addresses)

    @property
    def accepts_tunnels(self) -> bool:
        """New connections to it go through a tunnel. (While it is LEAVING it takes tunnels, but none should begin.)"""
        return self.phase in _ACCEPTS_TUNNELS

    def in_phase(self, phase: Phase) -> "Workload":
        """The same workload in another phase. (dataclasses.replace takes four times as long.)"""
        return Workload(
            self.key,
            self.service_account,
            self.node,
            self.addresses,
            self.netns,
            self.wanted,
            self.mode,
            phase,
            self.exclude,
            self.on_failure,
            self.limits,
            self.host,
            self.connect,
            self.trust_domain,
            self.spiffe_id,
        )

    def identity(self, trust_domain: str) -> Identity:
        """Its SPIFFE id in that trust domain, the mesh's, or in its own. Raises SpiffeIdError, never for a workload
        that is in a Mesh."""
        if self.spiffe_id is not None:
            return self.spiffe_id
        return _identity(self.trust_domain or trust_domain, self.key.namespace, self.service_account)


def primaries_of(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """The first of each family, in their order."""
    found: dict[int, Address] = {}
    for address in addresses:
        found.setdefault(address.version, address)
    return tuple(found.values())


def _host_addresses(workload: Workload) -> tuple[Address, ...]:
    return workload.addresses if workload.host is not None else ()


def _clash_of_neighbours(address: Address, one: Workload, other: Workload) -> Clash | None:
    """Processes share the address of their node, but no port."""
    if one.node != other.node:
        return Clash(WORKLOADS, one, WORKLOADS, other, "address", address, note="of different nodes")
    if one.host is None or other.host is None or (port := one.host.common_port(other.host)) is None:
        return None
    return Clash(WORKLOADS, one, WORKLOADS, other, "port", f"{port} of {address}", field="host.ports")


def _check_identities(trust_domain: str, workloads: Iterable[Workload]) -> None:
    """Makes sure that no decision can fail later for want of an identity, and that none of the mesh's own domain has
    another path."""
    workloads = list(workloads)
    for one in workloads:
        if one.spiffe_id is not None and one.spiffe_id.trust_domain == trust_domain:
            raise MeshError(f"{one.spiffe_id} is of the mesh's own trust domain")
        if one.spiffe_id is not None and one.spiffe_id.trust_domain != one.trust_domain:
            raise MeshError(f"{one.spiffe_id} is of another trust domain than {one.trust_domain}")
    try:
        for domain, namespace, account in {
            (workload.trust_domain, workload.key.namespace, workload.service_account) for workload in workloads
        }:
            SpiffeId(domain or trust_domain, namespace, account)
    except SpiffeIdError as error:
        raise MeshError(str(error)) from None


BY_ADDRESS: ClaimIndex[Address, Workload] = ClaimIndex("by_address", "address", lambda workload: workload.own_addresses)
"""An address that two workloads claim is neither's."""
HOSTS: GroupIndex[Address, Workload] = GroupIndex("hosts", "address", _host_addresses, _clash_of_neighbours)
"""The nodes' own processes by the address that they share."""

WORKLOADS: Kind[WorkloadName, Workload] = Kind(
    "workloads", "workload", WorkloadName.parse, (BY_ADDRESS, HOSTS), _check_identities
)
