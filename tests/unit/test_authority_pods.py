"""How nodes prove themselves by their pods' tokens, and which accounts they have; without an API server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from nodeseal.authority.admission import Residents, admit
from nodeseal.authority.bound_pods import FOUND_S, Agents, BoundPods
from nodeseal.authority.pod_proof import KEPT_S, REFUSED_S, PodProof, PodSource
from nodeseal.authority.proof import Caller, Proven
from nodeseal.authority.refused import Refused
from nodeseal.contracts.authority import ServiceWord
from nodeseal.kubernetes.api import AwayError
from nodeseal.kubernetes.placed import PlacedMeta, PlacedPod, PlacedSpec
from nodeseal.kubernetes.tokens import TOKEN_MAX, TokenClaims, unproven_claims

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGENTS = Agents("nodeseal-system", "nodeseal-agent", "nodeseal-ca")
CLAIMS = TokenClaims(
    frozenset({"nodeseal-ca"}), "nodeseal-system", "nodeseal-agent", "nodeseal-agent-1", "uid-1", "node1",
    NOW.timestamp() + 3600,
)  # fmt: skip


def pod(name: str, uid: str, node: str, account: str = "web", namespace: str = "shop") -> PlacedPod:
    return PlacedPod(PlacedMeta(name, namespace, uid), PlacedSpec(node, account))


AGENT_1 = pod("nodeseal-agent-1", "uid-1", "node1", "nodeseal-agent", "nodeseal-system")


def token(claims: TokenClaims, signature: str = "good") -> str:
    """As a token says these."""
    of = {
        "namespace": claims.namespace,
        "serviceaccount": {"name": claims.service_account, "uid": "1"},
        **({"pod": {"name": claims.pod, "uid": claims.pod_uid}} if claims.pod else {}),
        **({"node": {"name": claims.node, "uid": "2"}} if claims.node else {}),
    }
    body = {"aud": sorted(claims.audiences), "exp": claims.expires, "kubernetes.io": of, "sub": "whatever"}
    text = base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")
    return f"e30.{text}.{signature}"


class Source(PodSource):
    """An API server that believes every token whose signature is "good", and has these pods."""

    def __init__(self) -> None:
        self.reviewed: list[str] = []
        self.looked: list[tuple[str, ...]] = []
        self.pods: list[PlacedPod] = []
        self.fails = False
        self.gate: asyncio.Event | None = None

    async def review(self, token: str) -> TokenClaims | str:
        self.reviewed.append(token)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise AwayError("https://10.96.0.1:443: gone")
        found = unproven_claims(token)
        return found if token.endswith(".good") and found is not None else "[invalid bearer token]"

    async def look(self, namespace: str, *fields: str) -> list[PlacedPod]:
        self.looked.append((namespace, *fields))
        if self.fails:
            raise AwayError("https://10.96.0.1:443: gone")
        wanted = dict(one.split("=") for one in fields)
        return [
            one
            for one in self.pods
            if one.metadata.namespace == namespace
            and wanted.get("metadata.name", one.metadata.name) == one.metadata.name
            and wanted.get("spec.nodeName", one.node) == one.node
            and wanted.get("spec.serviceAccountName", one.account[1]) == one.account[1]
        ]


class World:
    def __init__(self) -> None:
        self.clock = 1000.0
        self.source = Source()
        self.pods = BoundPods(lambda: self.clock)
        self.pods.put(AGENT_1.key, AGENT_1)
        self.proof = PodProof(AGENTS, self.pods, self.source, lambda: NOW, lambda: self.clock)

    async def stands(self, claims: TokenClaims = CLAIMS, node: str = "node1", **more: Any) -> Proven | None:
        return await self.proof.stands(node, Caller("10.0.0.1", bearer=token(claims, **more)))

    async def refused(self, claims: TokenClaims = CLAIMS, node: str = "node1", **more: Any) -> Refused:
        with pytest.raises(Refused) as caught:
            await self.stands(claims, node, **more)
        assert "\n" not in str(caught.value)
        return caught.value


def play(story: Callable[[World], Awaitable[None]]) -> None:
    asyncio.run(_within(story))


async def _within(story: Callable[[World], Awaitable[None]]) -> None:
    async with asyncio.timeout(20):
        await story(World())


def test_agent_proves_its_node() -> None:
    async def story(world: World) -> None:
        proven = await world.stands()
        assert proven == Proven("node1", "pod nodeseal-system/nodeseal-agent-1 uid-1")
        assert world.proof.known(Caller("10.0.0.1", bearer=token(CLAIMS))) == "node1"

    play(story)


def test_who_shows_nothing_is_left_to_other_proofs() -> None:
    async def story(world: World) -> None:
        assert await world.proof.stands("node1", Caller("10.0.0.1")) is None
        assert world.proof.known(Caller("10.0.0.1")) is None

    play(story)


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        (replace(CLAIMS, audiences=frozenset({"https://kubernetes.default.svc"})), ServiceWord.POD_TOKEN_UNTAKEN),
        (replace(CLAIMS, audiences=frozenset()), ServiceWord.POD_TOKEN_UNTAKEN),
        (replace(CLAIMS, expires=NOW.timestamp() - 3600), ServiceWord.POD_TOKEN_UNTAKEN),
        (replace(CLAIMS, expires=0.0), ServiceWord.POD_TOKEN_UNTAKEN),
        (replace(CLAIMS, service_account="default"), ServiceWord.POD_TOKEN_OF_ANOTHER_ACCOUNT),
        (replace(CLAIMS, namespace="shop"), ServiceWord.POD_TOKEN_OF_ANOTHER_ACCOUNT),
        (replace(CLAIMS, node=""), ServiceWord.POD_TOKEN_UNBOUND),
        (replace(CLAIMS, pod=""), ServiceWord.POD_TOKEN_UNBOUND),
        (replace(CLAIMS, pod_uid=""), ServiceWord.POD_TOKEN_UNBOUND),
        (replace(CLAIMS, node="node2"), ServiceWord.TOKEN_OF_ANOTHER_NODE),
    ],
)
def test_what_a_token_says_of_itself_is_enough_to_refuse_it(claims: TokenClaims, word: ServiceWord) -> None:
    async def story(world: World) -> None:
        assert (await world.refused(claims)).word is word
        assert world.source.reviewed == []

    play(story)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "x",
        "a.b",
        "a.b.c.d",
        "a.!!!.c",
        "a.e30.c",
        "a.W10.c",
        f"a.{'e30'}.{'x' * TOKEN_MAX}",
        "ä.ö.ü",
        "a." + "W" * 4000 + ".c",
    ],
)
def test_what_is_no_token_costs_the_api_server_nothing(shown: str) -> None:
    async def story(world: World) -> None:
        with pytest.raises(Refused) as caught:
            await world.proof.stands("node1", Caller("10.0.0.1", bearer=shown))
        assert caught.value.word is ServiceWord.POD_TOKEN_UNTAKEN
        assert world.source.reviewed == []

    play(story)


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        (replace(CLAIMS, audiences=frozenset()), ServiceWord.POD_TOKEN_UNTAKEN),
        (replace(CLAIMS, service_account="other"), ServiceWord.POD_TOKEN_OF_ANOTHER_ACCOUNT),
        (replace(CLAIMS, node=""), ServiceWord.POD_TOKEN_UNBOUND),
        (replace(CLAIMS, pod=""), ServiceWord.POD_TOKEN_UNBOUND),
        (replace(CLAIMS, node="node2"), ServiceWord.TOKEN_OF_ANOTHER_NODE),
        (replace(CLAIMS, pod_uid="uid-2"), ServiceWord.POD_GONE),
    ],
)
def test_what_counts_is_what_the_api_server_says(
    claims: TokenClaims, word: ServiceWord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token may say of itself what it likes."""

    async def story(world: World) -> None:
        async def says(_token: str) -> TokenClaims | str:
            return claims

        monkeypatch.setattr(world.source, "review", says)
        assert (await world.refused()).word is word

    play(story)


def test_forged_token_is_asked_about_once_in_a_while() -> None:
    async def story(world: World) -> None:
        for _ in range(5):
            error = await world.refused(signature="forged")
            assert error.word is ServiceWord.POD_TOKEN_UNTAKEN
        assert len(world.source.reviewed) == 1
        world.clock += REFUSED_S + 1
        await world.refused(signature="forged")
        assert len(world.source.reviewed) == 2

    play(story)


def test_answer_counts_for_a_short_while_and_once_for_all_that_ask() -> None:
    async def story(world: World) -> None:
        world.source.gate = asyncio.Event()
        asking = [asyncio.create_task(world.stands()) for _ in range(20)]
        await asyncio.sleep(0)
        asking[0].cancel()
        world.source.gate.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert {one.node for one in found[1:] if isinstance(one, Proven)} == {"node1"}
        assert len(world.source.reviewed) == 1
        world.clock += KEPT_S - 1
        await world.stands()
        assert len(world.source.reviewed) == 1
        world.clock += 2
        await world.stands()
        assert len(world.source.reviewed) == 2

    play(story)


def test_answer_counts_no_longer_than_the_token() -> None:
    async def story(world: World) -> None:
        claims = replace(CLAIMS, expires=NOW.timestamp() + 5)
        caller = Caller("10.0.0.1", bearer=token(claims))
        await world.stands(claims)
        assert world.proof.known(caller) == "node1"
        world.clock += 6
        assert world.proof.known(caller) is None
        await world.stands(claims)
        assert len(world.source.reviewed) == 2

    play(story)


def test_pod_that_goes_takes_its_token_with_it_at_once() -> None:
    async def story(world: World) -> None:
        await world.stands()
        world.pods.put(AGENT_1.key, None)
        assert (await world.refused()).word is ServiceWord.POD_GONE
        assert world.proof.known(Caller("10.0.0.1", bearer=token(CLAIMS))) is None
        # Another one of its name is another one.
        world.pods.put(AGENT_1.key, pod("nodeseal-agent-1", "uid-2", "node1", "nodeseal-agent", "nodeseal-system"))
        assert (await world.refused()).word is ServiceWord.POD_GONE

    play(story)


def test_agent_that_the_watch_has_not_told_of_is_looked_for() -> None:
    async def story(world: World) -> None:
        world.pods.put(AGENT_1.key, None)
        world.source.pods = [AGENT_1]
        await world.stands()
        assert world.source.looked == [("nodeseal-system", "metadata.name=nodeseal-agent-1")]
        await world.stands()
        assert len(world.source.looked) == 1
        # The watch would have told by then.
        world.clock += FOUND_S + 1
        world.source.pods = []
        assert (await world.refused()).word is ServiceWord.POD_GONE

    play(story)


def test_pod_that_is_bound_elsewhere_proves_nothing() -> None:
    async def story(world: World) -> None:
        world.pods.put(AGENT_1.key, pod("nodeseal-agent-1", "uid-1", "node2", "nodeseal-agent", "nodeseal-system"))
        assert (await world.refused()).word is ServiceWord.POD_GONE

    play(story)


def test_nothing_is_proven_while_the_api_server_is_away_and_nothing_is_remembered_of_it() -> None:
    async def story(world: World) -> None:
        world.source.fails = True
        error = await world.refused()
        assert (error.word, error.retry_after) == (ServiceWord.REVIEW_UNAVAILABLE, 1.0)
        world.source.fails = False
        await world.stands()
        world.source.fails = True
        await world.stands()  # for a short while
        world.clock += KEPT_S + 1
        assert (await world.refused()).word is ServiceWord.REVIEW_UNAVAILABLE

    play(story)


def test_flood_of_tokens_has_a_bound_at_the_api_server() -> None:
    async def story(world: World) -> None:
        await world.stands()
        world.source.gate = asyncio.Event()
        flood = [asyncio.create_task(world.refused(signature=f"forged-{n}")) for n in range(200)]
        await asyncio.sleep(0.01)
        assert len(world.source.reviewed) == 1 + 64
        # Who is known goes on.
        assert await world.stands() is not None
        world.source.gate.set()
        words = [one.word for one in await asyncio.gather(*flood)]
        assert words.count(ServiceWord.BUSY) == 200 - 64
        assert words.count(ServiceWord.POD_TOKEN_UNTAKEN) == 64

    play(story)


def test_token_that_was_taken_before_waits_for_no_stranger() -> None:
    async def story(world: World) -> None:
        await world.stands()
        world.clock += KEPT_S + 1
        world.source.gate = asyncio.Event()
        flood = [asyncio.create_task(world.refused(signature=f"forged-{n}")) for n in range(200)]
        await asyncio.sleep(0.01)
        agent = asyncio.create_task(world.stands())
        await asyncio.sleep(0)
        world.source.gate.set()
        assert await agent is not None
        await asyncio.gather(*flood)

    play(story)


def test_reviews_of_strangers_have_a_rate() -> None:
    async def story(world: World) -> None:
        words = [(await world.refused(signature=f"forged-{number}")).word for number in range(2_100)]
        assert words.count(ServiceWord.BUSY) == 100
        world.clock += 1
        assert (await world.refused(signature="another")).word is ServiceWord.POD_TOKEN_UNTAKEN

    play(story)


def test_token_that_is_taken_no_more_is_a_strangers() -> None:
    async def story(world: World) -> None:
        await world.stands()
        world.clock += KEPT_S + 1

        async def says(_token: str) -> TokenClaims | str:
            return "its service account is gone"

        world.source.review = says  # type: ignore[method-assign]
        assert "its service account is gone" in str(await world.refused())
        assert world.proof.known(Caller("10.0.0.1", bearer=token(CLAIMS))) is None

    play(story)


# ---- which accounts a node has


def test_accounts_of_pods_come_and_go() -> None:
    pods = BoundPods(lambda: 0.0)
    one, two = pod("a", "1", "node1"), pod("b", "2", "node1")
    pods.put(one.key, one)
    pods.put(two.key, two)
    assert pods.has("node1", ("shop", "web"))
    assert not pods.has("node2", ("shop", "web"))
    assert not pods.has("node1", ("other", "web"))
    pods.put(one.key, None)
    assert pods.has("node1", ("shop", "web"))
    pods.put(two.key, pod("b", "3", "node2"))
    assert not pods.has("node1", ("shop", "web"))
    assert pods.has("node2", ("shop", "web"))
    assert len(pods) == 1


def test_mirror_of_a_static_pod_has_no_account() -> None:
    """A kubelet makes mirrors in whatever namespace it likes; the API server lets them name no service account."""
    pods = BoundPods(lambda: 0.0)
    mirror = pod("etcd-node1", "1", "node1", account="", namespace="kube-system")
    pods.put(mirror.key, mirror)
    assert not pods.has("node1", ("kube-system", ""))
    assert not pods.has("node1", ("kube-system", "default"))


def test_node_gets_the_accounts_of_its_pods_and_no_others() -> None:
    async def story(world: World) -> None:
        residents = Residents("cluster.local", {}, {}, bound=world.pods)
        world.pods.put(("shop", "web-1"), pod("web-1", "7", "node1"))
        identity = "spiffe://cluster.local/ns/shop/sa/web"
        assert str(admit(residents, "node1", identity)) == identity
        with pytest.raises(
            Refused, match="no pod with the service account shop/web is bound to the node node2"
        ) as caught:
            admit(residents, "node2", identity)
        assert caught.value.word is ServiceWord.IDENTITY_NOT_ON_NODE

    play(story)


def test_pod_that_was_bound_a_moment_ago_is_looked_for() -> None:
    async def story(world: World) -> None:
        world.source.pods = [pod("web-1", "7", "node1")]
        await world.proof.look("node1", ("shop", "web"))
        assert world.source.looked == [("shop", "spec.nodeName=node1", "spec.serviceAccountName=web")]
        assert world.pods.has("node1", ("shop", "web"))
        assert not world.pods.has("node2", ("shop", "web"))
        await world.proof.look("node1", ("shop", "web"))
        assert len(world.source.looked) == 1
        # The watch has told by then, or it is gone again.
        world.clock += FOUND_S + 1
        assert not world.pods.has("node1", ("shop", "web"))

    play(story)


def test_looking_for_pods_that_are_not_there_has_a_bound() -> None:
    async def story(world: World) -> None:
        async def ask() -> None:
            for number in range(200):
                await world.proof.look("node1", ("shop", f"nobody-{number}"))

        with pytest.raises(Refused) as caught:
            await ask()
        assert caught.value.word is ServiceWord.RATE
        assert len(world.source.looked) < 200
        await world.proof.look("node2", ("shop", "nobody"))  # another node's affair

    play(story)
