"""Which connections bypass the core: the entries of the map `bypass`, see bpf/lib/bypass.h for what they mean.

The map belongs to the run directory and is kept for all workloads together, from outside of what is done for each of
them: `Bypass` may be used in any thread, beside NodeCapture.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range

from nodeseal.capture import constants
from nodeseal.capture.errors import CaptureError
from nodeseal.linux import bpf
from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import Excluded, Exclusions, Network, PortRange
from nodeseal.mesh.extent import Extent

Entries = dict[bytes, int]
"""Key of the map -> value, which says something for PEER and NODE entries only."""

_OWNER_BITS = 32 + 128
_V4_MAPPED = bytes(10) + b"\xff\xff"
_V4_BITS = 96
_PRESENT = 1
_AT_ONCE = 4096


def peer_entries(addresses: Iterable[Address], exclude: Exclusions, *, shared: bool = False) -> Entries:
    """Of an enrolled workload: that it is one, and what it excludes. `shared`: the addresses are its node's."""
    entries: Entries = {}
    for address in addresses:
        entries[_key(constants.SCOPE_PEER, address)] = constants.PEER_SHARED if shared else constants.PEER_ALONE
        if exclude:
            _add(entries, address, constants.SCOPE_OUTBOUND_PORT, exclude.outbound)
            _add(entries, address, constants.SCOPE_INBOUND_PORT, exclude.inbound)
    return entries


def exclusion_entries(addresses: Iterable[Address], exclude: Exclusions) -> Entries:
    """Of a workload that is not enrolled yet: what it excludes."""
    peer = {_key(constants.SCOPE_PEER, address) for address in addresses}
    return {key: value for key, value in peer_entries(addresses, exclude).items() if key not in peer}


def node_entries(local: Iterable[Address], trusted: Iterable[Network]) -> Entries:
    """The addresses of the node itself, and the ranges that its operator named, which win."""
    entries = {_key(constants.SCOPE_NODE, address): constants.NODE_LOCAL for address in local}
    for network in trusted:
        entries[_prefix_key(constants.SCOPE_NODE, network)] = constants.NODE_TRUSTED
    return entries


def extent_entries(extent: Extent) -> Entries:
    """What the node's configuration says of the mesh's ranges; the longest prefixes come first, so that at no moment
    more is outside than is to be."""
    whole: list[Network] = [IPv6Network("::/0"), IPv4Network("0.0.0.0/0")]
    named = {network.version for network in extent.networks}
    found: list[tuple[Network, int]] = [(network, constants.EXTENT_INSIDE) for network in extent.networks]
    found += [(network, constants.EXTENT_OUTSIDE) for network in extent.outside]
    if named:
        # IPv4 addresses are below a prefix of IPv6's: what is said of all of that is not meant for them.
        kinds = {True: constants.EXTENT_OUTSIDE, False: constants.EXTENT_INSIDE}
        found += [(network, kinds[network.version in named]) for network in whole]
    entries = {_prefix_key(constants.SCOPE_EXTENT, network): value for network, value in found}
    return dict(sorted(entries.items(), key=lambda item: -_bits_of(item[0])))


def inside_entries(addresses: Iterable[Address], extent: Extent) -> Entries:
    """Of somebody whom the mesh state has: at these addresses nothing is certain, unless they are named."""
    return {
        _key(constants.SCOPE_EXTENT, address): constants.EXTENT_INSIDE
        for address in addresses
        if extent.is_outside(address) and not extent.names(address)
    }


def owner_of(key: bytes) -> Address:
    """Whose address an entry has."""
    packed = key[8:24]
    return IPv4Address(packed[12:]) if packed.startswith(_V4_MAPPED) else IPv6Address(packed)


class Bypass:
    """The map, by a descriptor that belongs to this object."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def replace(self, entries: Mapping[bytes, int]) -> None:
        """These entries and no others. Raises CaptureError."""
        with self._lock, _explained():
            present = set(bpf.map_keys(self._fd, constants.BYPASS_KEY_SIZE))
            self._put(entries)
            self._remove(present - entries.keys())

    def change(self, put: Mapping[bytes, int], remove: Iterable[bytes]) -> None:
        """Puts entries in, then removes others. Raises CaptureError."""
        with self._lock, _explained():
            self._put(put)
            self._remove(remove)

    def close(self) -> None:
        """Lets go of the map; what is in it stays."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _put(self, entries: Mapping[bytes, int]) -> None:
        items = iter(entries.items())
        while part := list(itertools.islice(items, _AT_ONCE)):
            keys = b"".join(key for key, _ in part)
            values = struct.pack(f"={len(part)}I", *(value for _, value in part))
            bpf.map_update_batch(self._fd, keys, values, len(part))

    def _remove(self, keys: Iterable[bytes]) -> None:
        # The shortest prefixes first: an address that is inside the mesh is not outside for a moment.
        for key in sorted(keys, key=_bits_of):
            bpf.map_delete(self._fd, key)


class NoBypass(Bypass):
    """Of a node whose workloads are all captured by iptables: nothing bypasses the core, which decides all of it."""

    def __init__(self) -> None:
        super().__init__(-1)

    def replace(self, entries: Mapping[bytes, int]) -> None:
        """Does nothing."""

    def change(self, put: Mapping[bytes, int], remove: Iterable[bytes]) -> None:
        """Does nothing."""


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CaptureError(f"cannot say which connections pass by the core: {error.strerror}") from None


def _add(entries: Entries, owner: Address, port_scope: int, excluded: Excluded) -> None:
    for ports in excluded.ports:
        for first, bits in _prefixes(ports):
            what = struct.pack("!H", first)
            entries[_packed(_OWNER_BITS + bits, port_scope, _mapped(owner), what)] = _PRESENT
    for network in excluded.networks:
        # A connection's two ends are of one family: ranges of the other one never count for this address.
        if network.version == owner.version:
            bits = network.prefixlen + (_V4_BITS if network.version == 4 else 0)
            what = _mapped(network.network_address)
            entries[_packed(_OWNER_BITS + bits, port_scope + 1, _mapped(owner), what)] = _PRESENT


def _prefixes(ports: PortRange) -> Iterator[tuple[int, int]]:
    """The range as prefixes of 16-bit numbers, (number, bits): at most 30, the fewest there can be."""
    for item in summarize_address_range(IPv6Address(ports.first), IPv6Address(ports.last)):
        yield int(item.network_address), item.prefixlen - (128 - 16)


def _key(scope: int, owner: Address) -> bytes:
    return _packed(_OWNER_BITS, scope, _mapped(owner), b"")


def _prefix_key(scope: int, owners: Network) -> bytes:
    bits = owners.prefixlen + (_V4_BITS if owners.version == 4 else 0)
    return _packed(32 + bits, scope, _mapped(owners.network_address), b"")


def _bits_of(key: bytes) -> int:
    bits: int = struct.unpack_from("=I", key)[0]
    return bits


def _packed(bits: int, scope: int, owner: bytes, what: bytes) -> bytes:
    return struct.pack("=II16s16s", bits, scope, owner, what)


def _mapped(address: Address) -> bytes:
    return _V4_MAPPED + address.packed if address.version == 4 else address.packed
