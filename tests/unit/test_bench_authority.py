"""The bench of the certificate service: its fleet, its clients against a real service, and the day of renewals."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from bench.authority import flood
from bench.authority.__main__ import main
from bench.authority.day import simulate
from bench.authority.fleet import make_fleet, shares

from nodeseal.authority.admission import Residents
from nodeseal.sources.directory.source import load


def test_renewals_of_a_fleet_that_starts_at_once_are_flat_over_the_day() -> None:
    """50,000 workloads start within a minute, renew at half of a day, and are never twice as many as on average."""
    day = simulate(50_000)
    assert 90_000 < day.renewals < 110_000
    assert day.peak < 2 * day.mean


def test_they_are_flat_whatever_the_lifetime() -> None:
    day = simulate(20_000, lifetime=timedelta(hours=1), day=timedelta(hours=2), part=timedelta(minutes=1))
    assert day.peak < 2 * day.mean


def test_fleet_is_a_mesh_state_with_a_request_for_each_workload(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path, 3, 2)
    residents = Residents.of(load(tmp_path / "mesh"))
    assert {node: len(accounts) for node, accounts in residents.enrolled.items()} == dict.fromkeys(
        ("node0", "node1", "node2"), 2
    )
    assert [len(node.requests) for node in fleet.nodes] == [2, 2, 2]
    assert sorted(node.name for part in shares(fleet.nodes, 2) for node in part) == ["node0", "node1", "node2"]


def test_every_certificate_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "4", "--identities", "3", "--output", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert next(line.split() for line in out.splitlines() if line.startswith("certificates ")) == ["certificates", "12"]


def test_flood_is_counted_on_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert flood.main(["--seconds", "2", "--rate", "400", "--connections", "4", "--slow", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["refused"]["token-unknown"] > 0
    assert found["counts"]["sent"] >= found["refused"]["token-unknown"] + found["refused"].get("rate", 0)
    assert found["node_certificates"] > 0
    assert found["service_mb"]["peak"] > 0
