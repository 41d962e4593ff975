"""Certificates from a real CA directory, also while it changes."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import AuthorityError
from nodeseal.identity.credentials import Credentials
from nodeseal.mesh.spiffe import SpiffeId

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = SpiffeId("example.org", "default", "shipper")


class Clock:
    """A wall clock that tests move."""

    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time


def make_ca(directory: Path, trust_domain: str = "example.org") -> Path:
    init_authority(directory, trust_domain=trust_domain, now=NOW)
    return directory


def credentials(directory: Path, clock: Clock | None = None) -> Credentials:
    return Credentials(directory, timedelta(hours=24), now=clock or Clock(), rand=lambda: 0.5)


def test_renewal_is_due_at_half_life(tmp_path: Path) -> None:
    credential = credentials(make_ca(tmp_path / "ca")).issue(IDENTITY)
    assert abs(credential.renew_at - (NOW + timedelta(hours=12))) < timedelta(hours=1)
    assert credential.svid.identity == IDENTITY


def test_renewal_never_comes_closer_than_a_second(tmp_path: Path) -> None:
    clock = Clock()
    issuing = credentials(make_ca(tmp_path / "ca"), clock)
    clock.time = NOW + timedelta(days=364, hours=23, minutes=59, seconds=58)
    assert issuing.issue(IDENTITY).renew_at >= clock.time + timedelta(seconds=1)


def test_expired_intermediate_is_an_error_that_says_so(tmp_path: Path) -> None:
    clock = Clock()
    issuing = credentials(make_ca(tmp_path / "ca"), clock)
    clock.time = NOW + timedelta(days=400)
    with pytest.raises(AuthorityError, match="expired"):
        issuing.issue(IDENTITY)


def test_changed_directory_is_read_anew(tmp_path: Path) -> None:
    directory = make_ca(tmp_path / "ca")
    issuing = credentials(directory)
    before = issuing.issue(IDENTITY).bundle_pem
    shutil.rmtree(directory)
    make_ca(directory)
    assert issuing.issue(IDENTITY).bundle_pem != before


def test_directory_that_went_bad_leaves_the_last_good_issuer(tmp_path: Path) -> None:
    directory = make_ca(tmp_path / "ca")
    issuing = credentials(directory)
    before = issuing.issue(IDENTITY).bundle_pem
    (directory / "intermediate.pem").write_text("not a certificate")
    assert issuing.issue(IDENTITY).bundle_pem == before


def test_directory_of_another_trust_domain_is_not_taken(tmp_path: Path) -> None:
    directory = make_ca(tmp_path / "ca")
    issuing = credentials(directory)
    shutil.rmtree(directory)
    make_ca(directory, "other.org")
    assert issuing.issue(IDENTITY).svid.identity == IDENTITY
    assert issuing.trust_domain == "example.org"
