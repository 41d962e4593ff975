"""Certificates of a service in the network: the node joins, asks, renews itself, and bears that the service is away."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.certificates import fingerprint
from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.contracts.authority import CERTIFICATES, FIRST, NODE, RENEWAL, ServiceWord
from nodeseal.identity import remote
from nodeseal.identity.issuer import Flaw, IssuerError
from nodeseal.identity.remote import RemoteIssuer
from nodeseal.local.issuers import ServiceCa
from nodeseal.mesh.spiffe import SpiffeId
from support.agent_fakes import until
from support.certificate_service import DAY, TOKEN, TRUST_DOMAIN, CertificateService

NOW = datetime(2026, 3, 1, tzinfo=UTC)
IDENTITY = SpiffeId(TRUST_DOMAIN, "default", "shipper")


class World:
    """A service, and a node that has a token for it."""

    def __init__(self, tmp_path: Path) -> None:
        self.now = NOW
        self.service = CertificateService(tmp_path, lambda: self.now)
        self.token = tmp_path / "token"
        self.put_token(TOKEN)
        self.run_dir = tmp_path / "run"
        self.run_dir.mkdir(mode=0o700)

    def put_token(self, token: str) -> None:
        self.token.write_text(f"{token}\n")
        self.token.chmod(0o600)

    def issuer(self, **changes: object) -> RemoteIssuer:
        """As an agent that starts has it."""
        ca = ServiceCa((self.service.address,), TRUST_DOMAIN, (self.service.pin,), None, self.token, None)
        ca = replace(ca, **changes)  # type: ignore[arg-type]
        return RemoteIssuer(ca, "node1", self.run_dir, now=lambda: self.now, rand=lambda: 0.5)

    def play(self, story: Callable[[RemoteIssuer], Awaitable[None]], **changes: object) -> None:
        """With an issuer that has not begun, of a service that runs."""

        async def whole() -> None:
            await self.service.start()
            issuer = self.issuer(**changes)
            try:
                async with asyncio.timeout(30):
                    await story(issuer)
            finally:
                await issuer.close()
                await self.service.stop()

        asyncio.run(whole())

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _node in self.service.asked)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(remote, "CHECK_S", 0.01)
    monkeypatch.setattr(remote, "BEGIN_S", 0.2)
    monkeypatch.setattr(remote, "_AGAIN_S", 0.01)
    return World(tmp_path)


def test_node_joins_by_its_token_and_asks_as_itself(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        svid = await issuer.issue(IDENTITY)
        assert {svid.anchor, issuer.anchor} == issuer.bundle.fingerprints
        assert world.service.asked[-2:] == [(NODE.path, ""), (CERTIFICATES.path, "node1")]
        assert world.service.requests[0].reason == FIRST
        again = await issuer.issue(IDENTITY, svid)
        assert again.serial != svid.serial
        assert again.key.public != svid.key.public
        assert (world.service.requests[1].reason, world.service.requests[1].expires) == (RENEWAL, svid.not_after)
        assert world.count(NODE.path) == 1

    world.play(story)


@pytest.mark.parametrize(("life", "longest"), [(timedelta(minutes=10), 30.0), (DAY, 600.0)])
def test_renewing_is_tried_again_within_the_node_certificates_life(
    world: World, life: timedelta, longest: float
) -> None:
    """Behind its end only another token would help."""
    world.service.node_lifetime = life

    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        following = world.issuer()
        await following.begin()
        for one in (issuer, following):
            waits = [one._renewal.next() for _ in range(20)]
            assert waits[0] <= 5.0
            assert max(waits) == pytest.approx(longest, rel=0.2)
        await following.close()

    world.play(story)


def test_outage_that_is_over_is_forgotten(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        for _ in range(20):
            issuer._refresh.next()
        await issuer.begin()
        assert issuer._refresh.next() <= 5.0

    world.play(story)


def test_service_is_known_by_a_certificate_as_well(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY

    world.play(story, pins=(), anchor=world.service.anchor)


def test_nodes_key_is_in_a_file_for_its_owner_only(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        file = world.run_dir / "node.pem"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "PRIVATE KEY" in file.read_text()
        assert "PRIVATE KEY" not in (world.run_dir / "issuer.json").read_text()

    world.play(story)


def test_agent_that_starts_again_need_not_join(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        following = world.issuer()
        await following.begin()
        assert (await following.issue(IDENTITY)).identity == IDENTITY
        await following.close()
        assert world.count(NODE.path) == 1

    world.play(story)


def test_agent_starts_while_the_service_is_away_and_goes_on_when_it_is_back(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        svid = await issuer.issue(IDENTITY)
        await world.service.stop()
        following = world.issuer()
        await following.begin()
        assert (following.bundle, following.anchor) == (issuer.bundle, svid.anchor)
        with pytest.raises(IssuerError, match="the certificate service does not answer: https://127"):
            await following.issue(IDENTITY)
        assert [fault.flaw for fault in await following.condition()] == [Flaw.AWAY]
        await world.service.start()
        assert (await following.issue(IDENTITY)).identity == IDENTITY
        assert await following.condition() == ()
        await following.close()

    world.play(story)


def test_node_whose_certificate_is_revoked_goes_on_with_it_when_that_is_taken_back(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        world.token.unlink()
        world.service.refusals = [ServiceWord.NODE_CERTIFICATE_REVOKED]
        with pytest.raises(IssuerError, match="node-certificate-revoked"):
            await issuer.issue(IDENTITY)
        (fault,) = await issuer.condition()
        assert (fault.flaw, fault.remedy.partition(" on ")[0]) == (
            Flaw.UNPROVEN, "`nodeseal ca token create --node node1`",
        )  # fmt: skip
        await issuer.issue(IDENTITY)
        assert await issuer.condition() == ()
        assert world.count(NODE.path) == 1

    world.play(story)


def test_node_whose_certificate_is_revoked_joins_anew_when_it_has_a_token(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        world.service.tokens.add("another")
        world.put_token("another")
        world.service.refusals = [ServiceWord.NODE_CERTIFICATE_REVOKED]
        await issuer.issue(IDENTITY)
        assert await issuer.condition() == ()
        assert world.count(NODE.path) == 2

    world.play(story)


def test_without_the_service_a_node_that_knows_no_anchors_does_not_begin(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await world.service.stop()
        with pytest.raises(IssuerError, match=r"does not answer: .*; start the service, or correct"):
            await issuer.begin()

    world.play(story)


def test_standby_is_passed_over(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    standby = CertificateService(tmp_path / "other", lambda: world.now)
    standby.refusals = [ServiceWord.STANDBY] * 2
    standby.stands_by_for(world.service)

    async def story(_issuer: RemoteIssuer) -> None:
        await standby.start()
        issuer = world.issuer(services=(standby.address, world.service.address))
        await issuer.begin()
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY
        assert len(standby.asked) == 1, "the one that answered is asked first from then on"
        await issuer.close()
        await standby.stop()

    world.play(story)


def test_service_with_another_key_is_told_nothing(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        with pytest.raises(IssuerError, match=f"the service has the key sha256:{world.service.pin}, and another"):
            await issuer.begin()
        assert world.service.asked == []

    world.play(story, pins=("0" * 64, "1" * 64))


def test_service_of_another_trust_domain_is_refused(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        with pytest.raises(IssuerError, match=r"is for the trust domain 'example\.org', this agent for other\.org"):
            await issuer.begin()

    world.play(story, trust_domain="other.org")


def test_refused_token_is_told_and_not_tried_again_until_there_is_another(world: World) -> None:
    world.put_token("nodeseal-join-wrong")

    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        for _ in range(3):
            with pytest.raises(IssuerError, match=r"its token is refused: as .* \(token-unknown\); `nodeseal ca"):
                await issuer.issue(IDENTITY)
        assert world.count(NODE.path) == 1
        (fault,) = await issuer.condition()
        assert fault.flaw is Flaw.UNPROVEN
        assert fault.remedy.startswith("`nodeseal ca token create --node node1` on the service, and put the token into")
        world.put_token(TOKEN)
        changes = issuer.changes()
        await anext(changes)
        await anext(changes)  # whoever waits for a certificate is told
        assert await issuer.condition() == ()
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY
        await changes.aclose()  # type: ignore[attr-defined]

    world.play(story)


def test_node_that_was_away_for_too_long_says_that_it_needs_a_token(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        world.now += 2 * DAY
        following = world.issuer()
        await following.begin()
        with pytest.raises(IssuerError, match="its own has expired at 2026-03-02 00:00Z, and its token is refused"):
            await following.issue(IDENTITY)
        world.service.tokens.add("nodeseal-join-another")
        world.put_token("nodeseal-join-another")
        assert (await following.issue(IDENTITY)).identity == IDENTITY
        await following.close()

    world.play(story)


def test_node_that_the_service_no_longer_knows_joins_anew(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        world.service.tokens.add("nodeseal-join-another")
        world.put_token("nodeseal-join-another")
        world.service.refusals = [ServiceWord.NODE_EXPIRED]
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY
        assert world.count(NODE.path) == 2

    world.play(story)


def test_node_certificate_is_renewed_at_half_of_its_life(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        before = (world.run_dir / "node.pem").read_text()
        changes = issuer.changes()
        await anext(changes)
        following = asyncio.ensure_future(anext(changes))  # type: ignore[arg-type]
        world.now += DAY / 2 - timedelta(minutes=1)
        await issuer.issue(IDENTITY)
        assert (world.run_dir / "node.pem").read_text() == before
        world.now += timedelta(minutes=1)
        await until(lambda: (world.run_dir / "node.pem").read_text() != before, "it has another certificate")
        assert [node for path, node in world.service.asked if path == NODE.path] == ["", "node1"]
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY
        following.cancel()

    world.play(story)


@pytest.mark.parametrize("word", [ServiceWord.BUSY, ServiceWord.RATE])
def test_busy_service_is_waited_for(world: World, word: ServiceWord) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        world.service.refusals = [word, word]
        assert (await issuer.issue(IDENTITY)).identity == IDENTITY
        world.service.refusals = [word, word, word]
        with pytest.raises(IssuerError, match=f"refuses a certificate for {IDENTITY}: as the test says .{word.value}."):
            await issuer.issue(IDENTITY)

    world.play(story)


def test_what_is_not_this_nodes_is_refused_at_once(world: World) -> None:
    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        await issuer.issue(IDENTITY)
        world.service.refusals = [ServiceWord.IDENTITY_NOT_ON_NODE]
        before = world.count(CERTIFICATES.path)
        with pytest.raises(IssuerError, match="identity-not-on-node"):
            await issuer.issue(IDENTITY)
        assert world.count(CERTIFICATES.path) == before + 1

    world.play(story)


def test_next_trust_anchor_is_known_before_its_first_certificate(world: World, tmp_path: Path) -> None:
    init_authority(tmp_path / "next", trust_domain=TRUST_DOMAIN, now=NOW)

    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        first = await issuer.issue(IDENTITY)
        world.service.signer, world.service.tag = Signer.load(tmp_path / "next", NOW), "2"
        second = await issuer.issue(IDENTITY)
        assert second.anchor != first.anchor
        assert issuer.bundle.fingerprints == {second.anchor}

    world.play(story)


@pytest.mark.parametrize("which", [0, 1])
def test_root_that_the_service_issues_by_is_known_without_a_certificate(
    world: World, tmp_path: Path, which: int
) -> None:
    init_authority(tmp_path / "next", trust_domain=TRUST_DOMAIN, now=NOW)
    signers = sorted((world.service.signer, Signer.load(tmp_path / "next", NOW)), key=lambda one: fingerprint(one.root))
    world.service.bundle_pem = "".join(one.bundle_pem for one in signers)
    world.service.signer = signers[which]

    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        assert len(issuer.bundle.fingerprints) == 2
        assert issuer.anchor == fingerprint(signers[which].root)

    world.play(story)


def test_token_that_others_can_read_is_not_used(world: World) -> None:
    world.token.chmod(0o644)

    async def story(issuer: RemoteIssuer) -> None:
        await issuer.begin()
        with pytest.raises(IssuerError, match=r"others can read the token in .*: its mode is 0644"):
            await issuer.issue(IDENTITY)
        assert world.count(NODE.path) == 0

    world.play(story)


def test_anchor_that_cannot_be_read_is_an_error_from_the_start(world: World, tmp_path: Path) -> None:
    world.service.address = "https://127.0.0.1:1"
    (tmp_path / "bad").write_text("nothing")
    for path, why in ((tmp_path / "bad", "it holds no certificate in PEM form"), (tmp_path / "no", "No such file")):
        with pytest.raises(IssuerError, match=f"cannot be known by {path}: {why}"):
            world.issuer(pins=(), anchor=path)
