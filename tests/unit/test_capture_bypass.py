"""The entries of the map `bypass`, and the map itself."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from nodeseal.capture import constants
from nodeseal.capture.bpf.programs import Programs
from nodeseal.capture.bypass import (
    Bypass,
    Entries,
    exclusion_entries,
    extent_entries,
    inside_entries,
    node_entries,
    peer_entries,
)
from nodeseal.linux import bpf
from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import NO_EXCLUSIONS, Excluded, Exclusions, PortRange
from nodeseal.mesh.extent import Extent
from support.namespaces import needs_root
from support.pods import compiled

V4, V6 = IPv4Address("10.0.0.1"), IPv6Address("fd00::1")
ADDRESSES: list[Address] = [
    IPv4Address(text) for text in ("0.0.0.1", "10.0.0.1", "10.1.2.3", "192.0.2.7", "255.255.255.255")
]
ADDRESSES += [IPv6Address(text) for text in ("::2", "2001:db8::1", "fd00::1", "fd00:0:0:1::1")]
PORTS = (1, 79, 80, 81, 255, 256, 8000, 8005, 8010, 8011, 32768, 65535)
EXCLUDED = [
    Excluded(ports=(PortRange(80, 80),)),
    Excluded(ports=(PortRange(8000, 8010), PortRange(1, 79))),
    Excluded(ports=(PortRange(1, 65535),)),
    Excluded(networks=(IPv4Network("10.0.0.0/8"),)),
    Excluded(networks=(IPv4Network("192.0.2.7/32"), IPv6Network("fd00::/64"))),
    Excluded(networks=(IPv4Network("0.0.0.0/0"),)),
    Excluded(networks=(IPv6Network("::/0"),)),
    Excluded(ports=(PortRange(81, 255),), networks=(IPv6Network("2001:db8::1/128"),)),
]


def found(entries: Entries, bits: int, scope: int, owner: Address, what: bytes) -> int | None:
    """What the kernel's lookup gives: the value under the longest prefix."""
    wanted = _bits(struct.pack("=I16s16s", scope, _mapped(owner), what))[:bits]
    matches = {}
    for key, value in entries.items():
        (length,) = struct.unpack_from("=I", key)
        if length <= bits and wanted.startswith(_bits(key[4:])[:length]):
            matches[length] = value
    return matches[max(matches)] if matches else None


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def _mapped(address: Address) -> bytes:
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


@pytest.mark.parametrize("excluded", EXCLUDED, ids=range(len(EXCLUDED)))
def test_entries_say_what_the_mesh_state_says(excluded: Excluded) -> None:
    for inbound in (True, False):
        exclude = Exclusions(inbound=excluded) if inbound else Exclusions(outbound=excluded)
        entries = peer_entries((V4, V6), exclude)
        scope = constants.SCOPE_INBOUND_PORT if inbound else constants.SCOPE_OUTBOUND_PORT
        for remote, port in itertools.product(ADDRESSES, PORTS):
            owner = V4 if remote.version == 4 else V6
            by_port = found(entries, 160 + 16, scope, owner, struct.pack("!H", port))
            by_range = found(entries, 160 + 128, scope + 1, owner, _mapped(remote))
            assert (by_port or by_range) == (1 if excluded.why(remote, port) else None)
            assert found(entries, 160 + 16, scope ^ 6, owner, struct.pack("!H", port)) is None


def test_an_enrolled_workload_is_found_by_each_of_its_addresses() -> None:
    entries = peer_entries((V4, V6), NO_EXCLUSIONS)
    assert found(entries, 160, constants.SCOPE_PEER, V4, b"") == found(entries, 160, constants.SCOPE_PEER, V6, b"") == 1
    assert found(entries, 160, constants.SCOPE_PEER, IPv4Address("10.0.0.2"), b"") is None


def test_exclusions_of_a_workload_that_is_not_enrolled_do_not_make_it_a_peer() -> None:
    entries = exclusion_entries((V4,), Exclusions(inbound=EXCLUDED[0]))
    assert found(entries, 160, constants.SCOPE_PEER, V4, b"") is None
    assert found(entries, 176, constants.SCOPE_INBOUND_PORT, V4, struct.pack("!H", 80)) == 1


def test_addresses_of_the_node_and_ranges_that_the_operator_names() -> None:
    entries = node_entries((V4, V6), (IPv4Network("192.0.2.0/24"), IPv4Network("10.0.0.1/32")))

    def kind(address: Address) -> int | None:
        return found(entries, 160, constants.SCOPE_NODE, address, b"")

    assert kind(V6) == constants.NODE_LOCAL
    assert kind(V4) == constants.NODE_TRUSTED
    assert kind(IPv4Address("192.0.2.200")) == constants.NODE_TRUSTED
    assert kind(IPv4Address("192.0.3.1")) is kind(IPv6Address("fd00::2")) is None


EXTENTS = [
    Extent(),
    Extent((IPv4Network("10.0.0.0/8"),)),
    Extent((IPv6Network("fd00::/8"),)),
    Extent((IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8")), (IPv4Network("10.0.0.1/32"),)),
    Extent((), (IPv4Network("10.0.0.0/16"), IPv6Network("2001:db8::/32"))),
    Extent((IPv4Network("10.0.0.0/24"),), (IPv4Network("10.0.0.0/8"),)),
]


@pytest.mark.parametrize("extent", EXTENTS, ids=range(len(EXTENTS)))
def test_entries_say_what_is_outside_the_mesh(extent: Extent) -> None:
    entries = extent_entries(extent)
    for address in ADDRESSES:
        kind = found(entries, 160, constants.SCOPE_EXTENT, address, b"")
        assert (kind == constants.EXTENT_OUTSIDE) == extent.is_outside(address), address
    lengths = [struct.unpack_from("=I", key)[0] for key in entries]
    assert lengths == sorted(lengths, reverse=True)


def test_of_a_family_with_no_range_nothing_is_certain() -> None:
    pods = Extent((IPv4Network("10.0.0.0/8"),))
    assert pods.is_outside(IPv4Address("192.0.2.1"))
    assert not pods.is_outside(V4)
    assert not pods.is_outside(IPv6Address("2001:db8::1"))


def test_an_address_of_the_mesh_state_is_inside_unless_it_is_named() -> None:
    extent = Extent((IPv4Network("10.0.0.0/8"),), (IPv4Network("192.0.2.7/32"),))
    addresses = [IPv4Address(text) for text in ("10.0.0.1", "192.0.2.7", "192.0.2.8")]
    kept = inside_entries(addresses, extent)
    assert len(kept) == 1
    kinds = [found(extent_entries(extent) | kept, 160, constants.SCOPE_EXTENT, one, b"") for one in addresses]
    assert kinds == [constants.EXTENT_INSIDE, constants.EXTENT_OUTSIDE, constants.EXTENT_INSIDE]


def test_numbers_agree_with_the_header() -> None:
    text = (Path(__file__).resolve().parents[2] / "bpf" / "lib" / "bypass.h").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"^#define NS_(\w+) (\d+)\b", text, re.MULTILINE)}
    assert numbers
    assert {name: getattr(constants, name) for name in numbers} == numbers


# ---- the map


@pytest.fixture
def table() -> Iterator[int]:
    fd = Programs(compiled()).new_map("bypass")
    yield fd
    Bypass(fd).close()


def keys(fd: int) -> set[bytes]:
    return set(bpf.map_keys(fd, constants.BYPASS_KEY_SIZE))


@needs_root
def test_the_map_is_made_to_hold_exactly_these_entries(table: int) -> None:
    first = peer_entries([IPv4Address(0x0A000000 + number) for number in range(5000)], NO_EXCLUSIONS)
    second = peer_entries((V4, V6), Exclusions(EXCLUDED[1], EXCLUDED[4]))
    assert keys(table) == set()
    for entries in (first, second, {}, second):
        Bypass(table).replace(entries)
        assert keys(table) == entries.keys()


@needs_root
def test_changes_leave_the_rest_alone(table: int) -> None:
    one, other = peer_entries((V4,), NO_EXCLUSIONS), peer_entries((V6,), Exclusions(EXCLUDED[4]))
    bypass = Bypass(table)
    bypass.change(one, ())
    bypass.change(other, ())
    assert keys(table) == one.keys() | other.keys()
    bypass.change({}, one)
    bypass.change({}, one)
    assert keys(table) == other.keys()
