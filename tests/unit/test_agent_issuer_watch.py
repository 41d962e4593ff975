"""The issuer's condition, as an agent looks at it: taken on without a restart, listed, and in the log once a day."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from nodeseal.authority.creation import init_authority
from nodeseal.authority.renewal import renew
from nodeseal.identity.embedded import EmbeddedIssuer
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.node.issuer_watch import IssuerWatch
from nodeseal.node.problems import row_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
END = NOW + 365 * DAY
IDENTITY = SpiffeId("example.org", "default", "shipper")


class World:
    """An agent's CA and run directory, and a wall clock that tests move."""

    def __init__(self, tmp_path: Path) -> None:
        self.time = NOW
        self.ca = tmp_path / "ca"
        self.run_dir = tmp_path / "run"
        self.run_dir.mkdir(mode=0o700)
        init_authority(self.ca, trust_domain="example.org", now=NOW)
        self.issuer = EmbeddedIssuer(self.ca, DAY, now=lambda: self.time)
        self.watch = IssuerWatch(self.issuer, self.run_dir, now=lambda: self.time)

    def look(self) -> None:
        asyncio.run(self.watch.look())

    def words(self) -> list[str]:
        """Of what is wrong after a look."""
        self.look()
        return [problem.word.value for problem in self.watch.problems()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    asyncio.run(made.issuer.close())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of the log, since the last time."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_nothing_is_wrong_at_first(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.words() == []
    assert warnings(caplog) == []


def test_end_of_the_intermediate_comes_near_and_passes(world: World) -> None:
    world.time = END - 61 * DAY
    assert world.words() == []
    world.time = END - 60 * DAY
    assert world.words() == ["ca-expires"]
    (problem,) = world.watch.problems()
    assert msgspec.to_builtins(row_of(problem)) == {
        "word": "ca-expires",
        "level": "warning",
        "about": None,
        "text": f"the CA's intermediate ({world.ca}/intermediate.pem) expires in 60 days, at 2027-01-01 00:00Z",
        "remedy": f"nodeseal ca renew {world.ca}",
    }
    world.time = END
    assert world.words() == ["ca-expired"]
    assert world.watch.problems()[0].word.level == "error"


def test_log_has_it_once_a_day(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.time = END - 60 * DAY
    for _ in range(3):
        world.look()
    (line,) = warnings(caplog)
    assert line.endswith(f"expires in 60 days, at 2027-01-01 00:00Z: nodeseal ca renew {world.ca}")
    world.time += DAY - timedelta(seconds=1)
    world.look()
    assert warnings(caplog) == []
    world.time += timedelta(seconds=1)
    world.look()
    (line,) = warnings(caplog)
    assert "expires in 59 days" in line


def test_what_is_new_is_logged_at_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.time = END - 60 * DAY
    world.look()
    warnings(caplog)
    (world.ca / "root.key").chmod(0o644)
    world.look()
    (line,) = warnings(caplog)
    assert line.startswith(f"others can read {world.ca}/root.key: its mode is 0644: ")


def test_renewal_is_taken_on_without_a_certificate_being_due(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.time = END - 10 * DAY
    assert world.words() == ["ca-expires"]
    made = renew(world.ca, now=world.time)
    assert world.words() == []
    issued = asyncio.run(world.issuer.issue(IDENTITY))
    assert issued.chain_pem.endswith(made.public_bytes(Encoding.PEM).decode())


def test_directory_that_went_bad_is_told_once_and_listed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    (world.ca / "intermediate.pem").write_text("x")
    assert world.words() == ["ca-not-used"]
    (line,) = warnings(caplog)
    assert line.startswith("the changed CA directory is not used: ")
    assert world.words() == ["ca-not-used"]
    assert warnings(caplog) == []
    (problem,) = world.watch.problems()
    assert "intermediate.pem does not hold a certificate" in problem.text
    renew(world.ca, now=world.time)
    assert world.words() == []


def test_key_that_others_can_read_is_an_error_in_a_running_agent(world: World) -> None:
    (world.ca / "intermediate.key").chmod(0o640)
    assert world.words() == ["ca-exposed"]
    assert world.watch.problems()[0].word.level == "error"
    # What runs goes on.
    assert asyncio.run(world.issuer.issue(IDENTITY)).identity == IDENTITY


def test_next_key_that_others_can_read_is_not_taken(world: World) -> None:
    renew(world.ca, now=world.time + DAY)
    (world.ca / "intermediate.key").chmod(0o644)
    assert world.words() == ["ca-not-used", "ca-exposed"]


def test_run_directory_that_others_can_look_into_is_told(world: World) -> None:
    world.run_dir.chmod(0o755)
    assert world.words() == ["run-directory-exposed"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives the directory to another user")
def test_run_directory_of_another_user_is_told(world: World) -> None:
    os.chown(world.run_dir, 65534, 0)
    assert world.words() == ["run-directory-exposed"]
