"""The issuer of a cluster: where it finds its service, what it shows, and what it bears; without an API server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web

from nodeseal.authority.certificates import fingerprint
from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.authority.tls import fresh_context, waiting_context
from nodeseal.contracts import authority as contract
from nodeseal.contracts.authority import BEARER, ServiceWord
from nodeseal.identity import embedded, in_cluster
from nodeseal.identity.in_cluster import ClusterIssuer
from nodeseal.identity.issuer import Flaw, IssuerError
from nodeseal.kubernetes.access import Access
from nodeseal.kubernetes.api import Api, AwayError
from nodeseal.kubernetes.objects import Key, Resource
from nodeseal.local.issuers import ClusterCa
from nodeseal.mesh.spiffe import SpiffeId
from support.agent_fakes import until
from support.certificate_service import answer, refusal

DOMAIN = "cluster.local"
IDENTITY = SpiffeId(DOMAIN, "shop", "web")
DAY = timedelta(days=1)


class FakeApi:
    """Has the Service and the ConfigMap."""

    def __init__(self) -> None:
        self.service: dict[str, Any] | None = None
        self.bundle: dict[str, str] | None = None
        self.away = False
        self.asked = 0

    async def get(self, resource: Resource[Any], key: Key) -> Any:
        self.asked += 1
        if self.away:
            raise AwayError("https://10.96.0.1:443: gone")
        meta = {"namespace": key[0], "name": key[1]}
        if resource.plural == "services":
            found = {"metadata": meta, "spec": self.service} if self.service is not None else None
        else:
            found = {"metadata": meta, "data": self.bundle} if self.bundle is not None else None
        return msgspec.convert(found, resource.type) if found is not None else None

    async def close(self) -> None:
        """As Api.close."""


class World:
    """A service with a CA, and an agent's pod."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.api = FakeApi()
        self.signer = self.new_ca("ca")
        self.shown: list[tuple[str, str]] = []
        """(token, node) of each request for a certificate."""
        self.refusals: list[ServiceWord] = []
        self.token = directory / "token"
        self.token.write_text("first\n")
        self.run_dir = directory / "run"
        self.run_dir.mkdir()
        self._runner: web.ServerRunner | None = None

    def new_ca(self, name: str) -> Signer:
        init_authority(self.directory / name, trust_domain=DOMAIN, now=datetime.now(UTC))
        return Signer.load(self.directory / name, datetime.now(UTC))

    async def start(self, *, context: ssl.SSLContext | None = None, publish: bool = True) -> None:
        """The service answers, and the cluster says so."""
        context = context or fresh_context(self.signer, DAY, datetime.now(UTC))
        self._runner = web.ServerRunner(web.Server(self._handle))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        port = self._runner.addresses[0][1]
        self.api.service = {"clusterIPs": ["127.0.0.1"], "ports": [{"name": "https", "port": port}]}
        if publish:
            self.api.bundle = {"bundle.pem": self.signer.bundle_pem}

    async def stop(self) -> None:
        """Nobody answers there any more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        anchor = fingerprint(self.signer.root)
        if request.path == contract.BUNDLE.path:
            return answer(
                contract.Bundle(trust_domain=DOMAIN, anchors=self.signer.bundle_pem, anchor=anchor, tag=anchor)
            )
        asked = contract.decode(body, contract.CertificateRequest)
        self.shown.append((request.headers["Authorization"].removeprefix(BEARER), asked.node))
        if self.refusals:
            return refusal(self.refusals.pop(0))
        now = datetime.now(UTC)
        signed = embedded.sign(self.signer, SpiffeId.parse(asked.identity), asked.csr, lifetime=DAY, now=now)
        return answer(
            contract.Certificate(
                identity=asked.identity, chain=signed.chain_pem, serial="1", issued=now, not_before=now,
                not_after=now + DAY, anchor=anchor, bundle=anchor,
            )
        )  # fmt: skip

    def issuer(self) -> ClusterIssuer:
        """As an agent on node1 has it."""
        ca = ClusterCa("nodeseal-system", "nodeseal-ca", DOMAIN, "nodeseal-trust-bundle", self.token)
        access = Access("https://127.0.0.1:1", self.directory / "ca" / "root.pem", self.token)
        issuer = ClusterIssuer(ca, "node1", self.run_dir, access=access, rand=lambda: 0.5)
        issuer._api = cast(Api, self.api)
        return issuer

    def play(self, story: Callable[[ClusterIssuer], Awaitable[None]]) -> None:
        """With an issuer that has not begun; the story starts the service."""

        async def whole() -> None:
            issuer = self.issuer()
            try:
                async with asyncio.timeout(30):
                    await story(issuer)
            finally:
                await issuer.close()
                await self.stop()

        asyncio.run(whole())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(in_cluster, "CHECK_S", 0.01)
    monkeypatch.setattr(in_cluster, "BEGIN_S", 0.3)
    monkeypatch.setattr(in_cluster, "_AGAIN_S", 0.01)
    return World(tmp_path)


def test_each_request_shows_the_token_that_is_there_then(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        svid = await issuer.issue(IDENTITY)
        world.token.write_text("second\n")
        again = await issuer.issue(IDENTITY, svid)
        assert world.shown == [("first", "node1"), ("second", "node1")]
        assert {svid.anchor, again.anchor, issuer.anchor} == issuer.bundle.fingerprints
        assert await issuer.condition() == ()
        # No key of the node's is anywhere.
        assert b"PRIVATE" not in b"".join(path.read_bytes() for path in world.run_dir.iterdir())

    world.play(story)


def test_service_that_is_installed_at_the_same_time_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_cluster, "BEGIN_S", 20.0)

    async def story(issuer: ClusterIssuer) -> None:
        beginning = asyncio.create_task(issuer.begin())
        await until(lambda: world.api.asked >= 4)
        await world.start(publish=False)
        asked = world.api.asked
        await until(lambda: world.api.asked >= asked + 4)
        assert not beginning.done()
        world.api.bundle = {"bundle.pem": world.signer.bundle_pem}
        await beginning
        await issuer.issue(IDENTITY)

    world.play(story)


@pytest.mark.parametrize(
    ("service", "bundle", "why"),
    [
        (None, None, "the Service nodeseal-system/nodeseal-ca is not there"),
        ({"clusterIPs": ["None"], "ports": [{"port": 1}]}, None, "nodeseal-system/nodeseal-ca has no address"),
        ({"clusterIPs": ["10.0.0.1"]}, None, "nodeseal-system/nodeseal-ca has no address"),
        ({"clusterIPs": ["fd00::1"], "ports": [{"port": 1}]}, None, "nodeseal-trust-bundle has no trust anchors yet"),
        ({"clusterIPs": ["10.0.0.1"], "ports": [{"port": 1}]}, {}, "nodeseal-trust-bundle has no trust anchors yet"),
        (
            {"clusterIPs": ["10.0.0.1"], "ports": [{"port": 1}]},
            {"bundle.pem": "ä"},
            "nodeseal-trust-bundle has trust anchors that cannot be read",
        ),
    ],
)
def test_what_is_lacking_is_told(
    world: World, service: dict[str, Any] | None, bundle: dict[str, str] | None, why: str
) -> None:
    world.api.service, world.api.bundle = service, bundle

    async def story(issuer: ClusterIssuer) -> None:
        with pytest.raises(IssuerError) as caught:
            await issuer.begin()
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)

    world.play(story)


def test_agent_that_starts_again_needs_neither(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        world.api.away = True
        again = world.issuer()
        await again.begin()
        assert again.bundle == issuer.bundle
        await again.close()

    world.play(story)


def test_service_that_has_moved_is_found_again(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        before = await issuer.issue(IDENTITY)
        await world.stop()
        await world.start()
        after = await issuer.issue(IDENTITY, before)
        assert after.anchor == before.anchor

    world.play(story)


def test_service_that_went_over_to_another_ca_is_known_by_that(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        before = await issuer.issue(IDENTITY)
        await world.stop()
        world.signer = world.new_ca("next")
        await world.start()
        after = await issuer.issue(IDENTITY, before)
        assert after.anchor == fingerprint(world.signer.root) != before.anchor
        assert issuer.bundle.fingerprints == {after.anchor}

    world.play(story)


def test_who_shows_another_certificate_is_told_nothing(world: World) -> None:
    """Neither one that nobody signed, nor that of a workload of this mesh."""

    async def story(issuer: ClusterIssuer) -> None:
        await world.start(context=waiting_context(datetime.now(UTC)))
        await issuer.begin()
        with pytest.raises(IssuerError, match="certificate verify failed"):
            await issuer.issue(IDENTITY)
        await world.stop()
        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.setattr("nodeseal.authority.tls.service_id", lambda _domain: IDENTITY)
        await world.start(context=fresh_context(world.signer, DAY, datetime.now(UTC)))
        monkeypatch.undo()
        with pytest.raises(IssuerError, match=r"is for spiffe://cluster.local/ns/shop/sa/web, not for spiffe://"):
            await issuer.issue(IDENTITY)
        assert world.shown == []

    world.play(story)


def test_agent_that_is_not_taken_for_its_node_says_so(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        world.refusals = [ServiceWord.POD_GONE]
        with pytest.raises(IssuerError, match=r"refuses a certificate for spiffe://cluster\.local/ns/shop/sa/web"):
            await issuer.issue(IDENTITY)
        (fault,) = await issuer.condition()
        assert fault.flaw is Flaw.UNPROVEN
        await issuer.issue(IDENTITY)
        assert await issuer.condition() == ()

    world.play(story)


def test_review_that_is_not_to_be_had_is_waited_for(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        world.refusals = [ServiceWord.REVIEW_UNAVAILABLE, ServiceWord.BUSY]
        await issuer.issue(IDENTITY)
        assert len(world.shown) == 3

    world.play(story)


def test_service_that_is_away_is_told_and_asked_again(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        await world.stop()
        with pytest.raises(IssuerError, match="the certificate service does not answer"):
            await issuer.issue(IDENTITY)
        (fault,) = await issuer.condition()
        assert fault.flaw is Flaw.AWAY
        await world.start()
        await issuer.issue(IDENTITY)
        assert await issuer.condition() == ()

    world.play(story)


def test_token_that_is_not_there_is_one_line(world: World) -> None:
    async def story(issuer: ClusterIssuer) -> None:
        await world.start()
        await issuer.begin()
        world.token.unlink()
        with pytest.raises(IssuerError, match="No such file or directory"):
            await issuer.issue(IDENTITY)

    world.play(story)
