"""A workload as capture sees it: what to capture, and what is held open while it is captured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Self

from nodeseal.capture import constants, listeners
from nodeseal.capture.journal import BackendName, Entry
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import PortRange
from nodeseal.mesh.host import HostPlace
from nodeseal.mesh.workload import primaries_of


@dataclass(frozen=True, slots=True)
class CaptureTarget:
    """What to capture. `name`: "namespace/name"; `netns`: a path, or a name under /run/netns; `addresses`: at least
    one, the first of each family being its primary; `open_on_failure`: new connections go direct while nobody holds the
    listeners; `host`: it is a process of the node, in whose namespace others live."""

    name: str
    netns: str
    addresses: tuple[Address, ...]
    open_on_failure: bool = False
    host: HostPlace | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """How the addresses of a workload's namespace and those of the mesh state differ."""

    near: tuple[Address, ...] = ()
    """See Entry.near."""
    uncaptured: tuple[str, ...] = ()
    """By these connections run past capture: they are of a family that is not captured."""
    unattributed: tuple[str, ...] = ()
    """The mesh state does not give these to the workload: peers do not know whose they are."""
    absent: tuple[str, ...] = ()
    """The mesh state gives it these, and no device has them."""

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """As the journal has them."""
        return cls(entry.near_addresses, tuple(entry.uncaptured), tuple(entry.unattributed), tuple(entry.absent))


@dataclass(slots=True)
class Captured:
    """A workload whose namespace is captured.

    `phase`: capturing, or leaving (after stop_new). `backend`: which one captures it. `listeners`: role (see
    listeners.py) -> descriptor of the listening socket, or of the ring (PARKED). They and `netns_fd` belong to this
    object until release(); hand duplicates over (SCM_RIGHTS).
    """

    target: CaptureTarget
    namespace: NetworkNamespace
    phase: Literal["capturing", "leaving"]
    backend: BackendName = "ebpf"
    listeners: dict[int, int] = field(default_factory=dict)
    parking: bool = False
    """What the workload dials waits in its ring until the core has found the far side."""
    native: bool = False
    """With parking: what is decided to be plaintext goes past the core."""
    addresses: Addresses = field(default_factory=Addresses)
    seen: object = None
    """Of the namespace, when it was last looked at: for who compares."""

    @property
    def cookie(self) -> int:
        """The network namespace's cookie (SO_NETNS_COOKIE)."""
        return self.namespace.cookie

    def spare(self) -> dict[int, int]:
        """The listeners of families in which the mesh state has no address any more, which are now the caller's."""
        unwanted = set(listeners.SHARED).difference(listeners.roles_of(self.target.addresses))
        return {role: self.listeners.pop(role) for role in unwanted & self.listeners.keys()}

    def takes(self, addresses: Iterable[Address]) -> bool:
        """Whether the workload's addresses may become these while it is captured: what stands for it in a captured
        family stays, and there is no family that is not captured."""
        return takes(self.target.addresses, self.addresses.near, addresses)

    @property
    def netns_fd(self) -> int:
        """An open descriptor of the network namespace."""
        return self.namespace.fd

    def close(self) -> None:
        """Let go of the descriptors; what is installed stays."""
        listeners.close_all(self.listeners)
        self.namespace.close()


def takes(before: Iterable[Address], near: Iterable[Address], after: Iterable[Address]) -> bool:
    """See Captured.takes; `near`: see Entry."""
    primaries = primaries_of(after)
    changed = any(one.version == other.version and one != other for one in primaries_of(before) for other in primaries)
    return not changed and {one.version for one in primaries} <= {one.version for one in near}


def ranges_of(place: HostPlace) -> list[list[int]]:
    """Its ports, as an entry has them."""
    return [[item.first, item.last] for item in place.ports]


def target_of(entry: Entry) -> CaptureTarget:
    """What the entry was made for."""
    ports = tuple(PortRange(first, last) for first, last in entry.ports)
    place = HostPlace(entry.cgroup, ports) if entry.cgroup else None
    return CaptureTarget(entry.name, entry.netns, entry.target_addresses, entry.open_on_failure, place)


def new_entry(target: CaptureTarget, namespace: NetworkNamespace, backend: BackendName) -> Entry:
    """What the journal says of a workload that is about to be captured."""
    return Entry(
        name=target.name,
        netns=str(namespace.path),
        cookie=namespace.cookie,
        inode=namespace.inode,
        addresses=[str(address) for address in target.addresses],
        state="installing",
        table=constants.ROUTE_TABLE,
        rule_priority=constants.RULE_PRIORITY,
        marks=[constants.MARK_CAPTURED, constants.MARK_TO_APP],
        backend=backend,
    )
