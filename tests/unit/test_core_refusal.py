"""Rows of refused peers: of several cores, of other versions, and as the local API shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

import msgspec
from msgspec.structs import replace

from nodeseal.api.connections_view import refused_row
from nodeseal.contracts.refusal import Refusal, merged
from nodeseal.mesh.model import Mesh, Mode, Phase, Workload, WorkloadName

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
ROW = Refusal(
    "default/a", "handshake", "inbound", "10.0.0.9", "10.0.0.1:15008", "peer shows no certificate", 3, 60_000, 500
)


def mesh() -> Mesh:
    addresses = {"a": (IPv4Address("10.0.0.1"),), "b": (IPv4Address("10.0.0.9"), IPv6Address("fd00::9"))}
    return Mesh.build(
        "example.org",
        [
            Workload(WorkloadName("default", name), name, "n", own, None, True, Mode.STRICT, Phase.ENROLLED)
            for name, own in addresses.items()
        ],
    )


def test_the_same_of_several_cores_is_one_row() -> None:
    older = replace(ROW, count=2, first_ms=90_000, last_ms=80_000, destination="10.0.0.1:15009")
    assert merged([ROW, older]) == merged([older, ROW]) == [replace(ROW, count=5, first_ms=90_000)]


def test_what_differs_stays_apart_and_the_latest_comes_first() -> None:
    others = [
        replace(ROW, last_ms=400, reason="peer does not speak TLS"),
        replace(ROW, last_ms=300, source="10.0.0.8"),
        replace(ROW, last_ms=200, workload="default/b"),
        replace(ROW, last_ms=100, kind="plaintext"),
    ]
    assert merged([ROW, *others]) == [*reversed(others), ROW]


def test_peers_that_were_dialled_differ_by_their_address() -> None:
    dialled = replace(ROW, direction="outbound", source="10.0.0.1", destination="10.0.0.8:15008")
    assert len(merged([dialled, replace(dialled, destination="10.0.0.9:15008")])) == 2


def test_the_api_names_both_ends_and_says_when() -> None:
    assert msgspec.to_builtins(refused_row(mesh(), ROW, NOW)) == {
        "workload": "default/a",
        "direction": "inbound",
        "kind": "handshake",
        "status": None,
        "source": "10.0.0.9",
        "source_workload": "default/b",
        "destination": "10.0.0.1:15008",
        "destination_workload": "default/a",
        "peer": None,
        "reason": "peer shows no certificate",
        "presented": None,
        "expected": None,
        "count": 3,
        "first": "2026-11-29T11:59:00+00:00",
        "last": "2026-11-29T11:59:59+00:00",
        "first_seconds": 60.0,
        "last_seconds": 0.5,
    }
    stranger = refused_row(None, replace(ROW, source="fd00::7", status=401, peer="spiffe://x/y"), NOW)
    assert (stranger.source_workload, stranger.status, stranger.peer) == (None, 401, "spiffe://x/y")
    assert refused_row(mesh(), replace(ROW, source="fd00::9"), NOW).source_workload == "default/b"
