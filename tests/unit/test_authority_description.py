"""What a CA directory is said to hold, and from when on its end is worth a warning."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.authority.description import Ending, describe, endings, exposed
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.renewal import renew, request
from nodeseal.authority.signer import Signer

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
INTERMEDIATE_END = NOW + 365 * DAY
ROOT_END = NOW + 3650 * DAY


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    init_authority(tmp_path / "ca", trust_domain="example.org", now=NOW)
    return tmp_path / "ca"


def found(directory: Path, now: datetime) -> list[Ending]:
    """Of an agent that read the directory when all was well."""
    return list(endings(directory, Signer.load(directory, NOW), now))


def test_intermediate_is_warned_of_sixty_days_before_its_end(directory: Path) -> None:
    assert found(directory, INTERMEDIATE_END - 60 * DAY - timedelta(seconds=1)) == []
    assert found(directory, INTERMEDIATE_END - 60 * DAY) == [
        Ending(
            False,
            f"the CA's intermediate ({directory}/intermediate.pem) expires in 60 days, at 2027-03-01 12:00Z",
            f"nodeseal ca renew {directory}",
        )
    ]


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (36 * timedelta(hours=1), "expires in 1 day, at"),
        (timedelta(seconds=1), "expires in 0 days, at"),
        (timedelta(0), "expired at"),
        (-DAY, "expired at"),
    ],
)
def test_days_are_counted_down_to_the_end_and_over_it(directory: Path, left: timedelta, text: str) -> None:
    (one,) = found(directory, INTERMEDIATE_END - left)
    assert one.text == f"the CA's intermediate ({directory}/intermediate.pem) {text} 2027-03-01 12:00Z"
    assert one.over == (left <= timedelta(0))


def test_where_the_roots_key_is_not_the_warning_says_how_to_ask_for_one(directory: Path) -> None:
    (directory / "root.key").unlink()
    (one,) = found(directory, INTERMEDIATE_END - DAY)
    assert one.remedy == f"nodeseal ca renew where the CA's root.key is, or nodeseal ca request {directory} FILE here"


def test_intermediate_of_a_short_life_is_warned_of_in_its_last_third(tmp_path: Path) -> None:
    directory = tmp_path / "ca"
    init_authority(directory, trust_domain="example.org", intermediate_lifetime=30 * DAY, now=NOW)
    assert found(directory, NOW + 19 * DAY) == []
    assert len(found(directory, NOW + 21 * DAY)) == 1


def test_root_is_warned_of_as_well(directory: Path) -> None:
    before = ROOT_END - 60 * DAY
    renew(directory, now=ROOT_END - 100 * DAY)
    issuer = Signer.load(directory, ROOT_END - 100 * DAY)
    assert list(endings(directory, issuer, before - timedelta(seconds=1))) == []
    # The intermediate ends with it, and another one would not help.
    (one,) = endings(directory, issuer, before)
    assert one.text == f"the CA's root ({directory}/root.pem) expires in 60 days, at 2036-02-27 12:00Z"
    assert one.remedy == "replace it: docs/operating.md, 'The life of the CA'"


def test_renewal_ends_the_warning(directory: Path) -> None:
    now = INTERMEDIATE_END - DAY
    renew(directory, now=now)
    assert list(endings(directory, Signer.load(directory, now), now)) == []


def test_what_others_can_get_at_is_named(directory: Path) -> None:
    assert list(exposed(directory)) == []
    for name, mode in (
        ("root.key", 0o640),
        ("intermediate.key", 0o604),
        ("root.pem", 0o664),
        ("intermediate.pem", 0o644),
    ):
        (directory / name).chmod(mode)
    directory.chmod(0o777)
    assert list(exposed(directory)) == [
        f"others can change {directory}: its mode is 0777",
        f"others can change {directory}/root.pem: its mode is 0664",
        f"others can read {directory}/root.key: its mode is 0640",
        f"others can read {directory}/intermediate.key: its mode is 0604",
    ]


def test_description_is_complete(directory: Path) -> None:
    found = describe(directory, NOW + DAY)
    root, intermediate = found.certificates
    answer = msgspec.to_builtins(found)
    del answer["certificates"]
    assert answer == {
        "directory": str(directory),
        "trust_domain": "example.org",
        "usable": True,
        "why": None,
        "keys": {"root.key": True, "intermediate.key": True, "intermediate-next.key": False},
        "warnings": [],
    }
    assert (root.role, root.path_length, root.key, root.days_left) == ("root", 1, "root.key", 3649)
    assert root.trust_domain == "example.org"
    assert intermediate.subject.startswith("CN=nodeseal intermediate ")
    assert (intermediate.not_before, intermediate.not_after) == (
        "2026-03-01T11:55:00+00:00",
        "2027-03-01T12:00:00+00:00",
    )
    assert (intermediate.path_length, intermediate.key, intermediate.days_left) == (0, "intermediate.key", 364)
    assert len(intermediate.sha256) == 64


def test_directory_that_cannot_be_used_is_shown_with_the_reason(directory: Path) -> None:
    answer = describe(directory, NOW + 400 * DAY)
    assert (answer.usable, answer.trust_domain) == (False, "example.org")
    assert answer.why.startswith(f"{directory}/intermediate.pem expired at ")
    assert answer.certificates[1].days_left == -35


def test_offline_root_is_shown(directory: Path) -> None:
    for name in ("intermediate.pem", "intermediate.key"):
        (directory / name).unlink()
    answer = describe(directory, NOW)
    assert [cert.role for cert in answer.certificates] == ["root"]
    assert not answer.usable


def test_key_that_waits_for_its_certificate_is_shown(directory: Path) -> None:
    request(directory)
    answer = describe(directory, NOW)
    assert answer.keys["intermediate-next.key"]
    assert answer.certificates[1].key == "intermediate.key"


def test_key_that_is_missing_or_readable_is_not_shown_as_there(directory: Path) -> None:
    (directory / "root.key").unlink()
    (directory / "intermediate.key").chmod(0o644)
    answer = describe(directory, NOW)
    assert [cert.key for cert in answer.certificates] == [None, None]
    assert answer.warnings == [f"others can read {directory}/intermediate.key: its mode is 0644"]


def test_nothing_to_show_is_an_error(directory: Path) -> None:
    shutil.rmtree(directory)
    with pytest.raises(AuthorityError, match="cannot read the CA's file"):
        describe(directory, NOW)
