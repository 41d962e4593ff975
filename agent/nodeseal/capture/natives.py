"""Native connections as the BPF programs account for them (bpf/lib/natives.h): those that are open, and what the others
have come to."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nodeseal.linux import bpf
from nodeseal.linux.sock_diag import Endpoint
from nodeseal.mesh.address import Address

_COOKIE = struct.Struct("=Q")
_NATIVE = struct.Struct("=QIII16s16s2s2sQ")  # struct ns_native
_PLACE = struct.Struct("=QIHH16s")  # struct ns_native_place
_TOTAL = struct.Struct("=QQQQ")  # struct ns_native_total
_V4_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose connections these are: a namespace, by its cookie, and in it the number of a process of the node."""

    netns: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class Native:
    """One that is open. `reason`: constants.NATIVE_...; `opened`: of the clock since boot, in nanoseconds."""

    cookie: int
    owner: Owner
    inbound: bool
    reason: int
    source: Endpoint
    destination: Endpoint
    opened: int


@dataclass(frozen=True, slots=True)
class Place:
    """Connections that are counted together: `far` is where the other side is."""

    owner: Owner
    inbound: bool
    reason: int
    far: Address


@dataclass(frozen=True, slots=True)
class Total:
    """Of a place. Bytes are those of connections that have been closed."""

    opened: int = 0
    closed: int = 0
    acknowledged: int = 0
    received: int = 0


def open_natives(natives: int) -> dict[int, Native]:
    """What is in the map `natives`, by the cookie of the workload's socket. Raises OSError."""
    found = {}
    for key, value in bpf.map_entries(natives, _COOKIE.size, _NATIVE.size):
        (cookie,) = _COOKIE.unpack(key)
        netns, number, inbound, reason, source, destination, source_port, destination_port, opened = _NATIVE.unpack(
            value
        )
        found[cookie] = Native(
            cookie,
            Owner(netns, number),
            bool(inbound),
            reason,
            (_address(source), int.from_bytes(source_port, "big")),
            (_address(destination), int.from_bytes(destination_port, "big")),
            opened,
        )
    return found


def totals(native_totals: int) -> dict[Place, Total]:
    """What is in the map `native_totals`. Raises OSError."""
    found = {}
    for key, value in bpf.map_entries(native_totals, _PLACE.size, _TOTAL.size):
        netns, number, inbound, reason, far = _PLACE.unpack(key)
        found[Place(Owner(netns, number), bool(inbound), reason, _address(far))] = Total(*_TOTAL.unpack(value))
    return found


def forget(native_totals: int, owner: Owner) -> bool:
    """Removes what is counted of a workload that is captured no more. False when there was nothing. Raises OSError."""
    keys = [key for key, _value in bpf.map_entries(native_totals, _PLACE.size, _TOTAL.size)]
    keys = [key for key in keys if _PLACE.unpack(key)[:2] == (owner.netns, owner.number)]
    for key in keys:
        bpf.map_delete(native_totals, key)
    return bool(keys)


def sums(counted: Mapping[Place, Total]) -> dict[Owner, Total]:
    """By workload, of all reasons and far addresses together."""
    found: dict[Owner, Total] = {}
    for place, total in counted.items():
        before = found.get(place.owner, Total())
        found[place.owner] = Total(
            before.opened + total.opened,
            before.closed + total.closed,
            before.acknowledged + total.acknowledged,
            before.received + total.received,
        )
    return found


def _address(packed: bytes) -> Address:
    return IPv4Address(packed[12:]) if packed.startswith(_V4_MAPPED) else IPv6Address(packed)
