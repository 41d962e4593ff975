"""Trust anchors in the mesh model: what is one, and what nodes say of those that they have and need."""

from __future__ import annotations

from base64 import b64encode

import pytest

from nodeseal.mesh.kinds import MeshError
from nodeseal.mesh.trust import Need, Trust, holders, needs_of, told_count, why_needed, would_be_lost
from nodeseal.mesh.trust_anchor import PemError, TrustAnchor, read_anchor_key

OLD, NEW = "a" * 64, "b" * 64
NOW = 1_000_000


def pem(der: bytes) -> str:
    text = b64encode(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "der", [b"\x30\x00", b"\x30\x03abc", b"\x30\x81\x80" + b"x" * 128, b"\x30\x82\x01\x00" + b"x" * 256]
)
def test_whatever_is_written_of_one_certificate_is_one_anchor(der: bytes) -> None:
    anchor = TrustAnchor.read(pem(der))
    assert TrustAnchor.read("\n  " + pem(der).replace("\n", "\r\n") + "\n\n") == anchor
    assert TrustAnchor.read(anchor.pem) == anchor
    assert read_anchor_key(anchor.key) == anchor.key
    assert all(len(line) <= 64 for line in anchor.pem.splitlines())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "something else"),
        ("nonsense", "something else"),
        (pem(b"\x30\x00") * 2, "something else"),
        (pem(b"\x30\x00").replace("CERTIFICATE", "PRIVATE KEY"), "something else"),
        (pem(b"\x30\x00").replace("MAA=", "MA=A"), "one whose Base64 is broken"),
        (pem(b""), "one that is cut off, or is none inside"),
        (pem(b"\x31\x00"), "one that is cut off, or is none inside"),
        (pem(b"\x30\x05ab"), "one that is cut off, or is none inside"),
        (pem(b"\x30\x01ab"), "one that is cut off, or is none inside"),
        (pem(b"\x30\x80ab"), "one that is cut off, or is none inside"),
        (pem(b"\x30\x84\x00"), "one that is cut off, or is none inside"),
        (pem(b"\x30\x82\x50\x00" + b"x" * 0x5000), "one of more than 16 KiB"),
    ],
)
def test_what_is_no_certificate_is_told(text: str, found: str) -> None:
    with pytest.raises(PemError) as caught:
        TrustAnchor.read(text)
    assert str(caught.value) == found


@pytest.mark.parametrize("text", ["", "a" * 63, "A" * 64, "g" * 64])
def test_key_of_an_anchor_is_a_fingerprint(text: str) -> None:
    with pytest.raises(MeshError):
        read_anchor_key(text)


def test_node_needs_the_anchors_of_its_certificates_but_for_the_one_that_it_issues_by() -> None:
    certificates = [(OLD, NOW + 5), (OLD, NOW + 9), (NEW, NOW + 90)]
    assert list(needs_of(certificates, {}, NEW)) == [Need(OLD[:32], NOW + 9)]


def test_node_needs_the_anchors_of_its_connections_but_for_the_one_that_it_issues_by() -> None:
    connections = {OLD[:32]: 7, NEW[:32]: 9, "ee" * 16: 1}
    assert list(needs_of([(OLD, NOW + 5)], connections, NEW)) == [Need(OLD[:32], NOW + 5, 7), Need("ee" * 16, 0, 1)]


@pytest.mark.parametrize(
    ("now", "told", "expected"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (9, 0, 9),
        (10, 0, 10),
        (11, 0, 20),
        (473, 0, 500),
        (500, 500, 500),
        (251, 500, 500),
        (250, 500, 300),
        (501, 500, 600),
        (1, 2, 1),
        (0, 1, 0),
    ],
)
def test_told_count_is_no_lower_and_changes_seldom(now: int, told: int, expected: int) -> None:
    assert told_count(now, told) == expected


def test_connections_that_end_one_after_the_other_change_what_is_told_a_few_times() -> None:
    told, changes = 0, 0
    for now in range(10_000, -1, -1):
        before, told = told, told_count(now, told)
        assert told >= now
        changes += told != before
    assert changes < 20


def test_what_each_node_says_of_an_anchor() -> None:
    publishers = {
        "behind": Trust.of([OLD], OLD, []),
        "between": Trust.of([OLD, NEW], NEW, [Need(OLD[:32], NOW + 1)]),
        "done": Trust.of([NEW], NEW, []),
        "talking": Trust.of([NEW], NEW, [Need(OLD[:32], NOW, 3)]),
        "former": Trust.of([OLD], NEW),
        "over": Trust.of([OLD, NEW], NEW, [Need(OLD[:32], NOW)]),
        "silent": None,
    }
    found = {one.node: (one.has, why_needed(one, NOW)) for one in holders(OLD, ["away", "done"], publishers)}
    assert found == {
        "away": (None, "has not said what it needs"),
        "behind": (True, "issues by it"),
        "between": (True, "has certificates of it"),
        "done": (False, None),
        "former": (True, "has not said what it needs"),
        "over": (True, None),
        "talking": (False, "has connections by it"),
        "silent": (None, "has not said what it needs"),
    }


def test_whoever_issues_by_what_nobody_would_trust_is_named() -> None:
    publishers = {
        "one": Trust.of([OLD], OLD),
        "other": Trust.of([OLD], OLD),
        "new": Trust.of([NEW], NEW),
        "silent": None,
    }
    assert would_be_lost([NEW], publishers) == {OLD[:32]: ["one", "other"]}
    assert would_be_lost([OLD, NEW], publishers) == {}
