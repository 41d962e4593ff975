"""What the maps of the BPF programs hold, in the layouts of bpf/nodeseal.h, and putting it there.

Functions here raise OSError.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

from nodeseal.capture import constants
from nodeseal.capture.journal import Entry
from nodeseal.capture.listeners import STEERED
from nodeseal.capture.natives import Owner, forget
from nodeseal.linux import bpf
from nodeseal.mesh.address import Address

ONLY = bytes(4)
"""The key of a map with one value."""
_ANY: dict[int, Address] = {4: IPv4Address(0), 6: IPv6Address(0)}
_PLACE_SIZE = 20
_OWNED_SIZE = 24
_CLAIM = struct.Struct("=III")


def mapped(address: Address) -> bytes:
    """The form in which the BPF programs know an address: 16 bytes, IPv4 as ::ffff:a.b.c.d."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


_ANYWHERE = tuple(map(mapped, _ANY.values()))


def state_of(entry: Entry) -> int:
    """What the programs are to do with new connections of a workload that is in place."""
    return constants.STATE_LEAVE if entry.state == "leaving" else constants.STATE_CAPTURE


# ---- of a workload with a network namespace of its own


def key_of(entry: Entry) -> bytes:
    """The namespace, as a key."""
    return struct.pack("=Q", entry.cookie)


def remove_enrolment(enrolled: int, entry: Entry) -> bool:
    """The connect program leaves the namespace's sockets alone. False when it did before."""
    return bpf.map_delete(enrolled, key_of(entry))


def enter_own(own: int, entry: Entry, present: Iterable[Address]) -> None:
    """What the namespace's own programs have to know of its addresses; `present`: those that it has."""
    bits = dict.fromkeys(map(mapped, entry.target_addresses), constants.OWN_ATTRIBUTED)
    for address in present:
        key = mapped(address)
        bits[key] = bits.get(key, 0) | constants.OWN_PRESENT
    for key, value in bits.items():
        bpf.map_update(own, key, bytes([value]))
    for key in [key for key in bpf.map_keys(own, 16) if key not in bits]:
        bpf.map_delete(own, key)


def enter_owned(owned: int, entry: Entry, present: Iterable[Address]) -> None:
    """The same for the connect program, which sees all namespaces: these addresses and no others."""
    head = key_of(entry)
    wanted = {head + mapped(address) for address in present}
    for key in wanted:
        bpf.map_update(owned, key, b"\x01")
    release_owned(owned, entry, kept=wanted)


def release_owned(owned: int, entry: Entry, *, kept: Collection[bytes] = ()) -> bool:
    """Nothing of the namespace any more, but for those. False when there was nothing."""
    head = key_of(entry)
    gone = [key for key in bpf.map_keys(owned, _OWNED_SIZE) if key.startswith(head) and key not in kept]
    for key in gone:
        bpf.map_delete(owned, key)
    return bool(gone)


def enter_listener(listeners: int, role: int, listener: int) -> None:
    """Put a listening socket into the map `listeners`."""
    bpf.map_update(listeners, struct.pack("=I", role), struct.pack("=Q", listener))


def live_listeners(listeners: int) -> frozenset[int]:
    """The roles whose listeners some process holds open."""
    return frozenset(role for role in STEERED if bpf.map_lookup(listeners, struct.pack("=I", role), 8) is not None)


def enter_guard(guards: int, entry: Entry, listener: int) -> None:
    """The connect program sees by it whether anybody holds the outbound listener."""
    bpf.map_update(guards, key_of(entry), struct.pack("=Q", listener))


def enter_settings(settings: int, entry: Entry) -> None:
    """What the namespace's own programs have to know of the workload."""
    bits = sum(constants.FAMILIES[version] for version in entry.versions)
    if entry.open_on_failure:
        bits |= constants.SETTING_OPEN
    if entry.parking:
        bits |= constants.SETTING_PARK
    if entry.parking and entry.native:
        bits |= constants.SETTING_PARK_IN | constants.SETTING_NATIVE
    bpf.map_update(settings, ONLY, struct.pack("=I", bits))


def enter_self(own: int, entry: Entry) -> None:
    """By what the namespace's own programs find the workload in maps of all."""
    bpf.map_update(own, ONLY, _ring(entry.cookie, entry.number))


def remove_totals(native_totals: int, entry: Entry) -> bool:
    """What its native connections came to. False when there was nothing."""
    return forget(native_totals, Owner(entry.cookie, entry.number))


def enter_enrolment(enrolled: int, entry: Entry, state: int) -> None:
    """What the connect program does with the namespace's sockets."""
    bpf.map_update(enrolled, key_of(entry), _enrolment(entry, state))


def enter_ring(rings: int, entry: Entry, ring: int) -> None:
    """What the workload's sockets have to tell goes into its ring."""
    bpf.map_update(rings, _ring(entry.cookie, entry.number), struct.pack("=I", ring))


def remove_ring(rings: int, entry: Entry) -> bool:
    """The opposite. False when there was nothing."""
    return bpf.map_delete(rings, _ring(entry.cookie, entry.number))


def _ring(netns: int, number: int = 0) -> bytes:
    """struct ns_ring."""
    return struct.pack("=QII", netns, number, 0)


def _enrolment(entry: Entry, state: int) -> bytes:
    """struct ns_enrolment."""
    packed = {address.version: address.packed for address in entry.near_addresses}
    return struct.pack("=II4s16s", state, entry.open_on_failure, packed.get(4, b""), packed.get(6, b""))


# ---- of a process of the node


def enter_host(host: int, entry: Entry, state: int) -> None:
    """What the connect program at the workload's cgroup does with the sockets that are made there."""
    head = struct.pack("=QI", entry.cookie, constants.host_mark(entry.number))
    bpf.map_update(host, ONLY, head + _enrolment(entry, state))


def enter_host_ring(rings: int, entry: Entry, ring: int) -> None:
    """What the workload dials is parked in its ring from now on."""
    bpf.map_update(rings, struct.pack("=I", entry.number), struct.pack("=I", ring))


def remove_host_ring(rings: int, entry: Entry) -> bool:
    """The opposite. False when there was nothing."""
    return bpf.map_delete(rings, struct.pack("=I", entry.number))


def enter_host_settings(settings: int, *, parking: bool, native: bool) -> None:
    """Whether anything that a process of the namespace dials is parked, and may be native then."""
    bits = constants.SETTING_PARK if parking else 0
    if parking and native:
        bits |= constants.SETTING_NATIVE
    bpf.map_update(settings, ONLY, struct.pack("=I", bits))


def enter_host_self(own: int, entry: Entry) -> None:
    """The namespace, by which and their numbers its processes are found in maps of all."""
    bpf.map_update(own, ONLY, _ring(entry.cookie))


def enter_host_listeners(listeners: int, entry: Entry, held: Mapping[int, int]) -> None:
    """Put listening sockets, by role, into the map `host_listeners`."""
    for role in STEERED:
        if role in held:
            bpf.map_update(listeners, _host_listener(entry, role), struct.pack("=Q", held[role]))


def live_host_listeners(listeners: int, entry: Entry) -> frozenset[int]:
    """The roles whose listeners some process holds open."""
    return frozenset(role for role in STEERED if bpf.map_lookup(listeners, _host_listener(entry, role), 8))


def claim_places(places: int, entry: Entry, state: int) -> None:
    """Claim the workload's ports at its addresses, and no others."""
    claim = _CLAIM.pack(entry.number, state, entry.open_on_failure)
    wanted = set(_places(entry))
    release_places(places, entry, kept=wanted)
    for place in wanted:
        if not place.startswith(_ANYWHERE) or not _is_anothers(places, place, entry):
            bpf.map_update(places, place, claim)


def release_places(places: int, entry: Entry, *, kept: Iterable[bytes] = ()) -> bool:
    """Give up what the workload has claimed, but for those. False when there was nothing."""
    released = False
    for place in list(bpf.map_keys(places, _PLACE_SIZE)):
        value = bpf.map_lookup(places, place, _CLAIM.size)
        if value is not None and _CLAIM.unpack(value)[0] == entry.number and place not in kept:
            released = bpf.map_delete(places, place) or released
    return released


def _places(entry: Entry) -> Iterator[bytes]:
    """At its own addresses, and at those of the node that are no workload's: there is no way round the core."""
    for address in entry.target_addresses:
        for first, last in entry.ports:
            for port in range(first, last + 1):
                for where in (address, _ANY[address.version]):
                    yield mapped(where) + struct.pack("!HH", port, 0)


def _is_anothers(places: int, place: bytes, entry: Entry) -> bool:
    """Whether a workload with another address has claimed the port first."""
    value = bpf.map_lookup(places, place, _CLAIM.size)
    return value is not None and _CLAIM.unpack(value)[0] != entry.number


def _host_listener(entry: Entry, role: int) -> bytes:
    return struct.pack("=I", entry.number * len(STEERED) + role)
