"""Native connections as the BPF programs account for them (bpf/lib/natives.h): those that are open, and what the others
have come to."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nodeseal.capture import constants
from nodeseal.linux import bpf
from nodeseal.linux.sock_diag import Endpoint
from nodeseal.mesh.address import Address

_COOKIE = struct.Struct("=Q")
_NATIVE = struct.Struct("=QIII16s16s2s2sQ")  # struct ns_native
_PLACE = struct.Struct("=QIHH16s")  # struct ns_native_place
_TOTAL = struct.Struct("=QQQQ")  # struct ns_native_total
_EVENT = struct.Struct("=QQQIxxxxQQ")  # struct ns_native_event, without its last member
_ENTRY = _EVENT.size + _NATIVE.size
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


@dataclass(frozen=True, slots=True)
class Event:
    """One that was opened or closed, when (of the clock since boot, in nanoseconds), and then with its bytes."""

    native: Native
    closed: bool
    when: int
    acknowledged: int = 0
    received: int = 0


def open_natives(natives: int) -> dict[int, Native]:
    """What is in the map `natives`, by the cookie of the workload's socket. Raises OSError."""
    found = {}
    for key, value in bpf.map_entries(natives, _COOKIE.size, _NATIVE.size):
        (cookie,) = _COOKIE.unpack(key)
        found[cookie] = _native(cookie, value)
    return found


@dataclass(frozen=True, slots=True)
class Log:
    """What was read of the log: oldest first, how many were lost before that, and where the next reading begins."""

    events: tuple[Event, ...] = ()
    lost: int = 0
    next: tuple[int, ...] = ()
    """By CPU."""


def read_log(native_log: int, native_told: int, first: Sequence[int] = ()) -> Log:
    """What was put into the log since it was read up to `first`; nothing: all that is there. Raises OSError."""
    cpus = bpf.possible_cpus()
    begins, told = first or [0] * cpus, _told(native_told, cpus)
    begins = [max(begin, end - constants.NATIVE_LOG) for begin, end in zip(begins, told, strict=True)]
    places = {number % constants.NATIVE_LOG for pair in zip(begins, told, strict=True) for number in range(*pair)}
    values = {place: bpf.map_lookup(native_log, _key(place), cpus * _ENTRY) for place in places}
    # What was written over meanwhile is lost.
    least = [count - constants.NATIVE_LOG for count in _told(native_told, cpus)]
    events, lost, ends = [], 0, []
    for cpu, (begin, end) in enumerate(zip(begins, told, strict=True)):
        lost += begin - first[cpu] if first else 0
        for number in range(begin, end):
            value = values[number % constants.NATIVE_LOG] or bytes(cpus * _ENTRY)
            event = _event(value[cpu * _ENTRY :], number)
            if number < least[cpu]:
                lost += 1
            elif event is not None:
                events.append(event)
            else:  # it is being written
                end = number
                break
        ends.append(end)
    events.sort(key=lambda one: one.when)
    return Log(tuple(events), lost, tuple(ends))


def want_log(native_wanted: int, *, wanted: bool) -> None:
    """Whether connections that are opened are put into the log from now on. Raises OSError."""
    bpf.map_update(native_wanted, _key(0), struct.pack("=I", wanted))


def _told(native_told: int, cpus: int) -> tuple[int, ...]:
    return struct.unpack(f"={cpus}Q", bpf.map_lookup(native_told, _key(0), 8 * cpus) or bytes(8 * cpus))


def _event(value: bytes, number: int) -> Event | None:
    written, when, cookie, kind, acknowledged, received = _EVENT.unpack_from(value)
    if written != number + 1:
        return None
    native = _native(cookie, value[_EVENT.size : _ENTRY])
    return Event(native, kind == constants.NATIVE_CLOSED, when, acknowledged, received)


def _key(number: int) -> bytes:
    return struct.pack("=I", number)


def _native(cookie: int, value: bytes) -> Native:
    netns, number, inbound, reason, source, destination, source_port, destination_port, opened = _NATIVE.unpack(value)
    return Native(
        cookie,
        Owner(netns, number),
        bool(inbound),
        reason,
        (_address(source), int.from_bytes(source_port, "big")),
        (_address(destination), int.from_bytes(destination_port, "big")),
        opened,
    )


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
