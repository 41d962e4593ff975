"""SPIFFE ids and addresses with ports."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from nodeseal.mesh.address import AddressError, ApplicationAddress, OriginalDestination, SourceAddress, parse_address
from nodeseal.mesh.spiffe import PathId, SpiffeId, SpiffeIdError, parse_identity, split

GOOD = "spiffe://example.org/ns/default/sa/shipper"


def test_an_id_reads_back_what_it_writes() -> None:
    assert SpiffeId.parse(GOOD) == SpiffeId("example.org", "default", "shipper")
    assert str(SpiffeId.parse(GOOD)) == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "https://example.org/ns/default/sa/a",
        "SPIFFE://example.org/ns/default/sa/a",
        "spiffe://example.org",
        "spiffe://example.org/ns/default/sa",
        "spiffe://example.org/ns/default/sa/",
        "spiffe://example.org/ns/default/sa/a/",
        "spiffe://example.org/ns/default/sa/a/b",
        "spiffe://example.org//default/sa/a",
        "spiffe://example.org/ns//sa/a",
        "spiffe://example.org/ns/../sa/a",
        "spiffe://example.org/ns/default/sa/.",
        "spiffe://example.org/sa/default/ns/a",
        "spiffe://Example.org/ns/default/sa/a",
        "spiffe://example.org:80/ns/default/sa/a",
        "spiffe://user@example.org/ns/default/sa/a",
        "spiffe:///ns/default/sa/a",
        "spiffe://example.org/ns/default/sa/a?x=1",
        "spiffe://example.org/ns/default/sa/a#x",
        "spiffe://example.org/ns/default/sa/%61",
        "spiffe://example.org/ns/default/sa/ä",
        "spiffe://example.org/ns/default/sa/a\n",
        "spiffe://example.org/ns/default/sa/a\0",
    ],
)
def test_anything_else_is_no_id(text: str) -> None:
    with pytest.raises(SpiffeIdError):
        SpiffeId.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://other.org/billing",
        "spiffe://other.org/billing/api",
        "spiffe://other.org/ns/default/sa",
        "spiffe://other.org/ns/default/sa/a/b",
        "spiffe://other.org/sa/default/ns/a",
        "spiffe://other.org/...",
        "spiffe://other.org/" + "x" * 492,
    ],
)
def test_ids_of_other_domains_may_have_any_path(text: str) -> None:
    found = parse_identity(text)
    assert found == PathId("other.org", text.removeprefix("spiffe://other.org"))
    assert str(found) == text
    assert parse_identity(GOOD) == SpiffeId.parse(GOOD)  # one id is always of one type


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://other.org",
        "spiffe://other.org/",
        "spiffe://other.org/billing/",
        "spiffe://other.org//billing",
        "spiffe://other.org/./billing",
        "spiffe://other.org/billing/..",
        "spiffe://other.org/*",
        "spiffe://other.org/billing?x=1",
        "spiffe://other.org/billing#x",
        "spiffe://other.org/b%69lling",
        "spiffe://other.org/bälling",
        "spiffe://other.org/billing\n",
        "spiffe://other.org/billing\0",
        "spiffe://Other.org/billing",
        "spiffe://other.org:80/billing",
        "spiffe://user@other.org/billing",
        "SPIFFE://other.org/billing",
        "https://other.org/billing",
        "spiffe://other.org/" + "x" * 493,
    ],
)
def test_other_paths_must_be_valid_all_the_same(text: str) -> None:
    with pytest.raises(SpiffeIdError):
        parse_identity(text)


@pytest.mark.parametrize("path", ["", "/", "billing", "billing/api", "/billing/", ".evil.org/billing"])
def test_path_begins_with_a_slash(path: str) -> None:
    with pytest.raises(SpiffeIdError):
        PathId("other.org", path)


def test_an_id_of_511_bytes_is_the_longest() -> None:
    room = 511 - len("spiffe://example.org/ns/default/sa/")
    assert len(str(SpiffeId("example.org", "default", "a" * room))) == 511
    with pytest.raises(SpiffeIdError, match="512"):
        SpiffeId("example.org", "default", "a" * (room + 1))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("spiffe://example.com", ("example.com", "")),
        ("spiffe://example.com/any/path", ("example.com", "/any/path")),
        ("spiffe://example.com/9eebccd2-12bf", ("example.com", "/9eebccd2-12bf")),
        (GOOD, ("example.org", "/ns/default/sa/shipper")),
        ("spiffe://a/" + "x" * 2037, ("a", "/" + "x" * 2037)),
    ],
)
def test_ids_of_any_trust_domain_are_split(text: str, parts: tuple[str, str]) -> None:
    assert split(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://",
        "spiffe:///x",
        "spiffe://example.com/",
        "spiffe://example.com/a/",
        "spiffe://example.com//a",
        "spiffe://example.com/a/../b",
        "spiffe://example.com/%61",
        "spiffe://Example.com/a",
        "spiffe://example.com?a",
        "https://example.com/a",
        "spiffe://a/" + "x" * 2038,
    ],
)
def test_what_the_standard_does_not_allow_is_not_split(text: str) -> None:
    with pytest.raises(SpiffeIdError):
        split(text)


def test_an_invalid_id_cannot_be_made() -> None:
    with pytest.raises(SpiffeIdError, match="namespace 'a/b'"):
        SpiffeId("example.org", "a/b", "c")


def test_addresses_read_back_what_they_write() -> None:
    for text in ("10.0.0.1:80", "[2001:db8::1]:15008", "0.0.0.0:0"):
        assert str(SourceAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "10.0.0.1:", ":80", "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.1:+1", "10.0.0.1:８0", "host:80",
     "2001:db8::1:80", "[10.0.0.1]:80", "[2001:db8::1]", "[fe80::1%eth0]:80", "10.0.0.01:80", "10.0.0.1:000080"],
)  # fmt: skip
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(AddressError):
        SourceAddress.parse(text)


def test_addresses_of_different_meaning_are_never_equal() -> None:
    dialled: object = OriginalDestination(IPv4Address("10.0.0.1"), 80)
    assert dialled != ApplicationAddress(IPv4Address("10.0.0.1"), 80)


def test_both_families_are_read() -> None:
    assert parse_address("10.0.0.1") == IPv4Address("10.0.0.1")
    assert parse_address("::1") == IPv6Address("::1")
