"""Certificates that another tool writes into a directory, in whatever way it replaces them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.identity import delivered
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.delivered import DeliveredIssuer
from nodeseal.identity.issuer import Flaw, IssuerError
from nodeseal.local.issuers import DEFAULT_PATTERN, DeliveredCa
from nodeseal.mesh.spiffe import SpiffeId
from support.issued import issue

NOW = datetime(2026, 3, 1, tzinfo=UTC)
IDENTITY = SpiffeId("example.org", "default", "shipper")
OTHER = SpiffeId("example.org", "payments", "siem")
DAY = timedelta(days=1)


class Tool:
    """Writes what an issuer in a directory reads. `path`: that directory."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "certificates"
        self.now = NOW
        init_authority(tmp_path / "ca", trust_domain="example.org", now=NOW)
        self.signer = Signer.load(tmp_path / "ca", NOW)
        self.ca = DeliveredCa(self.path, "example.org", DEFAULT_PATTERN, "tls.crt", "tls.key", "ca.crt")

    def files(self, identity: SpiffeId = IDENTITY) -> dict[str, str]:
        svid = issue(self.signer, identity, lifetime=DAY, now=self.now)
        return {"tls.crt": svid.chain_pem, "tls.key": svid.key.pem(), "ca.crt": self.signer.bundle_pem}

    def write(self, identity: SpiffeId = IDENTITY, **only: str) -> Path:
        """Everything anew, or the files that are given ("tls_crt")."""
        place = self.path / identity.namespace / identity.service_account
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = {name.replace("_", "."): text for name, text in only.items()} or self.files(identity)
        for name, text in files.items():
            (place / f".{name}").write_text(text)
            (place / f".{name}").replace(place / name)
        return place

    def play(self, story: Callable[[DeliveredIssuer], Awaitable[None]]) -> None:
        """With an issuer that has begun."""

        async def whole() -> None:
            issuer = DeliveredIssuer(self.ca, now=lambda: self.now)
            try:
                async with asyncio.timeout(20):
                    await issuer.begin()
                    await story(issuer)
            finally:
                await issuer.close()

        asyncio.run(whole())


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setattr(delivered, "CHECK_S", 0.01)
    return Tool(tmp_path)


def test_certificate_key_and_anchors_are_read(tool: Tool) -> None:
    tool.write()

    async def story(issuer: DeliveredIssuer) -> None:
        svid = await issuer.issue(IDENTITY)
        assert svid.delivered
        assert svid.identity == IDENTITY
        assert {svid.anchor, issuer.anchor} == issuer.bundle.fingerprints
        assert not issuer.superseded(svid)

    tool.play(story)


def test_certificate_is_not_asked_for_again_before_it_ends(tool: Tool) -> None:
    tool.write()

    async def story(issuer: DeliveredIssuer) -> None:
        credential = await Credentials(issuer, now=lambda: NOW).issue(IDENTITY)
        assert credential.renew_at == credential.svid.not_after == NOW + DAY

    tool.play(story)


def test_next_certificate_is_noticed(tool: Tool) -> None:
    tool.write()

    async def story(issuer: DeliveredIssuer) -> None:
        changes = issuer.changes()
        await anext(changes)
        first = await issuer.issue(IDENTITY)
        tool.write()
        while not issuer.superseded(first):
            await anext(changes)
        second = await issuer.issue(IDENTITY)
        assert second.serial != first.serial
        assert not issuer.superseded(second)
        await changes.aclose()  # type: ignore[attr-defined]

    tool.play(story)


def test_certificate_without_its_key_is_not_used_until_the_key_is_there(tool: Tool) -> None:
    tool.write()

    async def story(issuer: DeliveredIssuer) -> None:
        first = await issuer.issue(IDENTITY)
        files = tool.files()
        tool.write(tls_crt=files["tls.crt"])
        (fault,) = [one for one in await issuer.condition() if one.flaw is Flaw.STALE]
        assert "is not used, for it is for another key" in fault.text
        assert not issuer.superseded(first)
        with pytest.raises(IssuerError, match="is for another key; see to the tool"):
            await issuer.issue(IDENTITY)
        tool.write(tls_key=files["tls.key"])
        assert [one for one in await issuer.condition() if one.flaw is Flaw.STALE] == []
        assert issuer.superseded(first)

    tool.play(story)


def test_link_to_a_directory_is_swapped_as_the_kubelet_does(tool: Tool) -> None:
    place = tool.path / "default" / "shipper"
    place.mkdir(parents=True)

    def swap(name: str) -> None:
        (place / name).mkdir()
        for file, text in tool.files().items():
            (place / name / file).write_text(text)
        (place / "..new").symlink_to(name)
        (place / "..new").replace(place / "..data")

    swap("..1")
    for file in ("tls.crt", "tls.key", "ca.crt"):
        (place / file).symlink_to(f"..data/{file}")

    async def story(issuer: DeliveredIssuer) -> None:
        first = await issuer.issue(IDENTITY)
        swap("..2")
        await issuer.condition()
        assert issuer.superseded(first)
        assert (await issuer.issue(IDENTITY)).serial != first.serial

    tool.play(story)


def test_trust_anchors_are_those_of_all_workloads(tool: Tool, tmp_path: Path) -> None:
    tool.write()
    init_authority(tmp_path / "next", trust_domain="example.org", now=NOW)
    following = Signer.load(tmp_path / "next", NOW)

    async def story(issuer: DeliveredIssuer) -> None:
        before = issuer.bundle.fingerprints
        tool.signer = following
        tool.write(OTHER)
        svid = await issuer.issue(OTHER)
        assert issuer.bundle.fingerprints == before | {svid.anchor}

    tool.play(story)


def test_expired_certificate_is_an_error_that_names_its_place(tool: Tool) -> None:
    place = tool.write()
    tool.now = NOW + 2 * DAY

    async def story(issuer: DeliveredIssuer) -> None:
        with pytest.raises(IssuerError, match=f"the certificate of {IDENTITY} in {place} expired at 2026-03-02"):
            await issuer.issue(IDENTITY)

    tool.play(story)


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("tls_key", "nothing", "is there, and .*tls.key cannot be used: it is no private key"),
        ("tls_crt", "nothing", "cannot be read as PEM"),
        ("tls_key", "x" * (1 << 17), "tls.key is too large"),
    ],
)
def test_what_cannot_be_used_is_named(tool: Tool, file: str, text: str, line: str) -> None:
    tool.write()
    tool.write(**{file: text})

    async def story(issuer: DeliveredIssuer) -> None:
        with pytest.raises(IssuerError, match=line):
            await issuer.issue(IDENTITY)

    tool.play(story)


def test_workload_that_nothing_was_delivered_for_is_named(tool: Tool) -> None:
    tool.write()

    async def story(issuer: DeliveredIssuer) -> None:
        with pytest.raises(IssuerError, match=r"payments/siem cannot be read .*No such file"):
            await issuer.issue(OTHER)

    tool.play(story)


def test_without_any_trust_anchor_it_does_not_begin(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered, "BEGIN_S", 0.05)

    async def story(_issuer: DeliveredIssuer) -> None:
        pytest.fail("it began")

    with pytest.raises(IssuerError, match=r"no trust anchors are in .*/\{namespace\}/\{service_account\}/ca\.crt"):
        tool.play(story)


def test_directory_on_a_disk_is_told_loudly(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.write()

    async def flaws(issuer: DeliveredIssuer) -> list[Flaw]:
        return [one.flaw for one in await issuer.condition()]

    async def story(issuer: DeliveredIssuer) -> None:
        monkeypatch.setattr(delivered, "file_system_type", lambda _path: 0xEF53)  # ext4
        assert Flaw.ON_DISK in await flaws(issuer)
        monkeypatch.setattr(delivered, "file_system_type", lambda _path: 0x01021994)  # tmpfs
        assert Flaw.ON_DISK not in await flaws(issuer)

    tool.play(story)


def test_key_that_others_can_read_is_told(tool: Tool) -> None:
    place = tool.write()
    tool.path.chmod(0o755)
    (place / "tls.key").chmod(0o644)

    async def story(issuer: DeliveredIssuer) -> None:
        await issuer.issue(IDENTITY)
        (fault,) = [one for one in await issuer.condition() if one.flaw is Flaw.EXPOSED]
        assert fault.text == f"others can read {place}/tls.key: its mode is 0644"
        tool.path.chmod(0o700)
        assert Flaw.EXPOSED not in [one.flaw for one in await issuer.condition()]

    tool.play(story)
