"""Revocations in the mesh model, and what cores know them by."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nodeseal.documents.revocation import parse_serial
from nodeseal.mesh.kinds import MeshError
from nodeseal.mesh.model import Mesh
from nodeseal.mesh.revocation import (
    REVOCATIONS,
    RevocationKey,
    Serials,
    identities_of,
    nodes_of,
    revoked_anchor,
    revoked_identity,
    revoked_node,
    revoked_serials,
)
from nodeseal.mesh.revoked import (
    Digests,
    difference,
    of_identity,
    of_revocations,
    of_serial,
    packed,
    union,
    unpacked,
)
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.sources.directory.source import load
from nodeseal.sources.source import MeshStateError

WEB, DB = SpiffeId("example.org", "default", "web"), SpiffeId("example.org", "default", "db")
MOST = (1 << 160) - 1
ANCHOR = "9c05" * 16


def test_serial_numbers_are_packed_in_order_each_once() -> None:
    serials = Serials.of([7, MOST, 0, 7])
    assert (list(serials), len(serials)) == ([0, 7, MOST], 3)
    with pytest.raises(OverflowError):
        Serials.of([MOST + 1])


def test_long_list_of_serial_numbers_is_small() -> None:
    revocation = revoked_serials(range(1 << 100, (1 << 100) + 100_000))
    assert sys.getsizeof(revocation.serials.packed) < 2_100_000
    digests = packed(of_revocations([revocation], "example.org"))
    assert sys.getsizeof(digests) < 1_700_000
    assert len(unpacked(digests)) == 100_000


@pytest.mark.parametrize(
    "revocation",
    [
        revoked_anchor(ANCHOR),
        revoked_identity(WEB),
        revoked_node("node3", [WEB]),
        revoked_serials([5]),
        revoked_serials([5, 6]),
    ],
)
def test_keys_are_read_as_they_are_written(revocation: object) -> None:
    key = revocation.key  # type: ignore[attr-defined]
    assert RevocationKey.parse(str(key)) == key


@pytest.mark.parametrize("text", ["", "identity", "identity ", " x"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(MeshError):
        RevocationKey.parse(text)


def test_what_revocations_revoke() -> None:
    revocations = [
        revoked_identity(WEB, "leaked"),
        revoked_node("node3", [DB]),
        revoked_serials([5]),
        revoked_serials([5], "other.org"),
        revoked_anchor(ANCHOR),
    ]
    assert set(of_revocations(revocations, "example.org")) == {
        of_identity(WEB),
        of_identity(DB),
        of_serial("example.org", 5),
        of_serial("other.org", 5),
        ANCHOR[:32],
    }
    assert {identity: one.because for identity, one in identities_of(revocations).items()} == {
        WEB: " (leaked)",
        DB: "",
    }
    assert list(nodes_of(revocations)) == ["node3"]
    assert unpacked(packed(["b" * 32, "a" * 32, "b" * 32])) == {"a" * 32, "b" * 32}


@pytest.mark.parametrize(
    ("old", "new"), [("", ""), ("", "ab"), ("ab", ""), ("abc", "abc"), ("ac", "bcd"), ("bcd", "ac"), ("abd", "ce")]
)
def test_sets_of_digests_are_put_together_and_compared(old: str, new: str) -> None:
    before, after = ({letter * 32 for letter in letters} for letters in (old, new))
    added, removed = difference(packed(before), packed(after))
    assert (unpacked(added), unpacked(removed)) == (after - before, before - after)
    assert unpacked(union([packed(before), packed(after), b""])) == before | after
    assert union([packed(before), packed(after)]) == packed(before | after)
    digests = Digests(packed(after))
    assert (list(digests), digests[1:5]) == (sorted(after), sorted(after)[1:5])


def test_revocations_are_not_in_the_mesh_of_cores() -> None:
    mesh = Mesh.build("example.org", (), revocations=[revoked_identity(WEB)])
    assert mesh.for_cores() == Mesh.build("example.org", ())
    assert mesh.for_cores().for_cores() is not mesh
    empty = Mesh.build("example.org", ())
    assert empty.for_cores() is empty


@pytest.mark.parametrize(("text", "number"), [("ff", 255), ("0xFF", 255), ("00:FF", 255), ("", None), ("g", None)])
def test_serial_numbers_as_they_are_written(text: str, number: int | None) -> None:
    assert parse_serial(text) == number


ENTRIES = [
    {"identity": str(WEB), "reason": "leaked", "since": "2026-11-30T16:00:00Z"},
    {"node": "node3", "identities": [str(DB)]},
    {"serials": ["05", "aa:bb"], "trust_domain": "other.org"},
    {"anchor": ANCHOR, "reason": "removed"},
]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_files_say_what_is_revoked(tmp_path: Path, suffix: str) -> None:
    text = json.dumps({"trust_domain": "example.org", "revocations": ENTRIES})
    (tmp_path / f"mesh.{suffix}").write_text(text)
    found = load(tmp_path).of(REVOCATIONS)
    assert set(found.values()) == {
        revoked_identity(WEB, "leaked", "2026-11-30T16:00:00Z"),
        revoked_node("node3", [DB]),
        revoked_serials([5, 0xAABB], "other.org"),
        revoked_anchor(ANCHOR, "removed"),
    }


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({}, "revocations[0]: expected one of identity, node, serials, anchor, found none of them"),
        (
            {"identity": str(WEB), "node": "x"},
            "revocations[0]: expected one of identity, node, serials, anchor, found identity and node",
        ),
        (
            {"identity": "web"},
            "revocations[0].identity: expected a SPIFFE id such as spiffe://example.org/ns/default/sa/web, found 'web'",
        ),
        (
            {"serials": ["zz"]},
            "revocations[0].serials[0]: expected a serial number of 1 to 40 hexadecimal digits, found 'zz'",
        ),
        ({"serials": []}, "revocations[0].serials: expected at least one serial number, found none"),
        ({"node": "n", "trust_domain": "x"}, "revocations[0].trust_domain: expected only"),
        ({"anchor": ANCHOR[:32]}, "revocations[0].anchor: expected the fingerprint of a trust anchor, found '9c05"),
        (
            {"anchor": ANCHOR, "serials": ["5"]},
            "revocations[0]: expected one of identity, node, serials, anchor, found",
        ),
        ({"node": "n", "reason": "x" * 201}, "revocations[0].reason: expected a line of at most 200 characters"),
        ({"node": "n", "since": "now"}, "revocations[0].since: expected a time in UTC, ISO 8601, found 'now'"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, entry: dict[str, object], problem: str) -> None:
    (tmp_path / "mesh.yaml").write_text("trust_domain: example.org\n")
    (tmp_path / "revocations.json").write_text(json.dumps({"revocations": [entry]}))
    with pytest.raises(MeshStateError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"revocations.json:1: {problem}")
