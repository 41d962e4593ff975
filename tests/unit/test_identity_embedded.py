"""Certificates from a real CA directory, also while it changes or its disk is slow."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority import store
from nodeseal.authority.certificates import fingerprint
from nodeseal.authority.creation import init_authority
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.renewal import renew
from nodeseal.authority.signer import Signer
from nodeseal.authority.store import read_certificates
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity import embedded
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.embedded import EmbeddedIssuer
from nodeseal.identity.issuer import Flaw, IssuerError
from nodeseal.identity.key import PrivateKey
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


def with_issuer(
    directory: Path, story: Callable[[EmbeddedIssuer], Awaitable[None]], clock: Clock | None = None
) -> None:
    """Plays a story with the issuer of a CA directory."""

    async def play() -> None:
        issuer = EmbeddedIssuer(directory, timedelta(hours=24), now=clock or Clock())
        try:
            async with asyncio.timeout(20):
                await story(issuer)
        finally:
            await issuer.close()

    asyncio.run(play())


def test_renewal_is_due_at_half_life(tmp_path: Path) -> None:
    clock = Clock()

    async def story(issuer: EmbeddedIssuer) -> None:
        credentials = Credentials(issuer, now=clock, rand=lambda: 0.5)
        first = await credentials.issue(IDENTITY)
        assert first.svid.identity == IDENTITY
        assert first.renew_at < NOW + timedelta(hours=12)
        clock.time = first.renew_at
        second = await credentials.issue(IDENTITY, first)
        assert second.renew_at == clock.time + timedelta(hours=12)

    with_issuer(make_ca(tmp_path / "ca"), story, clock)


def test_renewal_never_comes_closer_than_a_second(tmp_path: Path) -> None:
    clock = Clock()

    async def story(issuer: EmbeddedIssuer) -> None:
        clock.time = NOW + timedelta(days=364, hours=23, minutes=59, seconds=58)
        credential = await Credentials(issuer, now=clock, rand=lambda: 0.5).issue(IDENTITY)
        assert credential.renew_at >= clock.time + timedelta(seconds=1)

    with_issuer(make_ca(tmp_path / "ca"), story, clock)


def test_profile_fips_takes_no_ed25519_from_a_ca_that_turned_to_it(tmp_path: Path) -> None:
    directory = make_ca(tmp_path / "ca")

    async def story(issuer: EmbeddedIssuer) -> None:
        credentials = Credentials(issuer, now=lambda: NOW, fips=True)
        assert await credentials.issue(IDENTITY)
        renew(directory, now=NOW, kind=KeyKind.ED25519)
        with pytest.raises(IssuerError) as caught:
            await credentials.issue(IDENTITY)
        assert str(caught.value).startswith(
            f"the CA directory {directory} gave for {IDENTITY} what cannot be used: CN=nodeseal intermediate "
        )
        assert str(caught.value).endswith(
            "has an Ed25519 key, which the profile fips of 'tls' refuses; use p256 or p384 for all of the CA, or leave "
            "the profile out"
        )

    with_issuer(directory, story)


def test_expired_intermediate_is_an_error_that_says_so(tmp_path: Path) -> None:
    clock = Clock()

    async def story(issuer: EmbeddedIssuer) -> None:
        clock.time = NOW + timedelta(days=400)
        with pytest.raises(IssuerError, match="expired"):
            await issuer.issue(IDENTITY)
        assert [fault.flaw for fault in await issuer.condition()] == [Flaw.EXPIRED]

    with_issuer(make_ca(tmp_path / "ca"), story, clock)


def test_directory_without_a_ca_is_an_error_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(IssuerError, match=str(tmp_path)):
        EmbeddedIssuer(tmp_path, timedelta(hours=24))


def test_changed_directory_is_read_anew(tmp_path: Path) -> None:
    directory = make_ca(tmp_path / "ca")

    async def story(issuer: EmbeddedIssuer) -> None:
        before = issuer.bundle
        assert (await issuer.issue(IDENTITY)).anchor == issuer.anchor
        shutil.rmtree(directory)
        make_ca(directory)
        svid = await issuer.issue(IDENTITY)
        (root,) = read_certificates(directory / "root.pem")
        assert issuer.bundle != before
        assert issuer.bundle.fingerprints == {fingerprint(root)}
        assert svid.anchor == issuer.anchor == fingerprint(root)

    with_issuer(directory, story)


def test_directory_that_went_bad_leaves_what_was_read_before(tmp_path: Path) -> None:
    directory = make_ca(tmp_path / "ca")

    async def story(issuer: EmbeddedIssuer) -> None:
        before = issuer.bundle
        (directory / "intermediate.pem").write_text("not a certificate")
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY
        assert issuer.bundle == before
        assert [fault.flaw for fault in await issuer.condition()] == [Flaw.STALE]

    with_issuer(directory, story)


def test_directory_of_another_trust_domain_is_not_taken(tmp_path: Path) -> None:
    directory = make_ca(tmp_path / "ca")

    async def story(issuer: EmbeddedIssuer) -> None:
        shutil.rmtree(directory)
        make_ca(directory, "other.org")
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY
        assert issuer.trust_domain == "example.org"
        (fault,) = await issuer.condition()
        assert "it is for the trust domain other.org" in fault.text

    with_issuer(directory, story)


def test_trust_anchors_are_followed_without_a_certificate_being_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "CHECK_S", 0.01)
    directory, other = make_ca(tmp_path / "ca"), make_ca(tmp_path / "other")

    async def story(issuer: EmbeddedIssuer) -> None:
        changes = issuer.changes()
        first = await anext(changes)
        assert first == issuer.bundle
        (directory / "root.pem").write_text((directory / "root.pem").read_text() + (other / "root.pem").read_text())
        second = await anext(changes)
        assert second.fingerprints > first.fingerprints
        assert second == issuer.bundle
        await changes.aclose()  # type: ignore[attr-defined]

    with_issuer(directory, story)


def test_slow_disk_keeps_the_event_loop_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp, disk = store.stamp, threading.Event()

    def slow(directory: Path) -> object:
        assert disk.wait(20)
        return stamp(directory)

    async def story(issuer: EmbeddedIssuer) -> None:
        monkeypatch.setattr(store, "stamp", slow)
        asked = [asyncio.create_task(issuer.issue(IDENTITY)), asyncio.create_task(issuer.condition())]
        # Neither waits for the disk; nor does whatever else uses a thread of the event loop's.
        assert await asyncio.to_thread(lambda: 7) == 7
        assert issuer.bundle.trust_domain == "example.org"
        assert not any(task.done() for task in asked)
        disk.set()
        await asyncio.gather(*asked)

    with_issuer(make_ca(tmp_path / "ca"), story)


def test_request_that_its_key_did_not_sign_is_refused(tmp_path: Path) -> None:
    make_ca(tmp_path / "ca")
    signer = Signer.load(tmp_path / "ca", NOW)
    lines = PrivateKey.generate().request(str(IDENTITY)).decode().splitlines()
    lines[-2] = lines[-2][:8] + ("A" if lines[-2][8] != "A" else "B") + lines[-2][9:]
    with pytest.raises(AuthorityError, match="the request is not signed by its own key"):
        embedded.sign(signer, IDENTITY, "\n".join(lines), lifetime=timedelta(hours=1), now=NOW)
