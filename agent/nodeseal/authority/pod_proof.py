"""How a node proves itself on Kubernetes: each request carries the token of the agent's pod, and the API server says
whose it is.

How it works. What the token says of itself is looked at first: what would be refused in any case costs the API server
nothing. Then a TokenReview is made, once for all requests that show the same token at the same time, and its answer
counts for a short while: a good one for KEPT_S, and one that the server does not take for REFUSED_S. That the pod is
still there and bound to that node is looked at for every request, by the pods that are followed; where they have none
yet the API server is asked. Without an answer nobody proves anything.

What strangers can have the API server do is bounded, for all of them together. A token that was taken before is no
stranger's: it waits for none of them when its answer has become old.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from nodeseal.authority.bound_pods import Account, Agents, BoundPods, check_claims, check_pod
from nodeseal.authority.proof import Caller, NodeProof, Proven
from nodeseal.authority.rates import Rates
from nodeseal.authority.refused import Refused
from nodeseal.contracts.authority import NodeRequest, ServiceWord
from nodeseal.kubernetes.access import AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.placed import BOUND, PLACED_PODS, PlacedPod
from nodeseal.kubernetes.tokens import TokenClaims, review, unproven_claims

T = TypeVar("T")

KEPT_S = 60.0
"""So long an answer that takes a token counts, and no longer than the token. One whose pod is gone is refused at once
all the same."""
REFUSED_S = 10.0
_KEPT_MOST = 20_000
_REFUSED_MOST = 10_000
_REVIEWS_MOST = 64
"""Of tokens that were not taken before, under way at a time."""
_REVIEWS_RATE, _REVIEWS_BURST = 100.0, 2_000.0
"""The same a second, in the long run and at once: all agents of a cluster may begin together."""
_AGAIN_S = 1.0
_CLOCK_SKEW_S = 60.0
_LOOKS_RATE, _LOOKS_BURST = 2.0, 50.0
"""Of a node: how often it may ask for a pod that is not known yet."""


class PodSource(ABC):
    """The API server, for what is not known yet. Both raise AwayError, RefusedError, AccessError."""

    @abstractmethod
    async def review(self, token: str) -> TokenClaims | str:
        """What it says of a token for this service; why it does not take it."""

    @abstractmethod
    async def look(self, namespace: str, *fields: str) -> list[PlacedPod]:
        """The pods of a namespace, bound and not ended, that have these fields ("spec.nodeName=node1")."""


class ApiPods(PodSource):
    """The real one."""

    def __init__(self, api: Api, audience: str) -> None:
        self._api = api
        self._audience = audience

    async def review(self, token: str) -> TokenClaims | str:
        """See PodSource."""
        found = await review(self._api, token, self._audience)
        return found.claims if found.claims is not None else found.why

    async def look(self, namespace: str, *fields: str) -> list[PlacedPod]:
        """See PodSource."""
        listing = await self._api.list_all(
            replace(PLACED_PODS, namespace=namespace), {"fieldSelector": ",".join((*fields, BOUND))}
        )
        return listing.items


@dataclass(frozen=True, slots=True)
class _Kept:
    claims: TokenClaims
    until: float
    """So long the answer counts."""
    ends: float
    """Then the token ends."""


class PodProof(NodeProof):
    """Belongs to the event loop."""

    def __init__(
        self, agents: Agents, pods: BoundPods, source: PodSource, now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """`now`: the wall clock; `clock`: seconds, monotonic."""
        self._agents = agents
        self._pods = pods
        self._source = source
        self._now = now
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._reviews: dict[bytes, asyncio.Task[TokenClaims]] = {}
        self._strange = Rates(_REVIEWS_RATE, _REVIEWS_BURST, clock)
        self._looks = Rates(_LOOKS_RATE, _LOOKS_BURST, clock)

    async def prove(self, request: NodeRequest, caller: Caller) -> Proven | None:
        """See NodeProof.prove. None joins so."""
        del request, caller
        return None

    def known(self, caller: Caller) -> str | None:
        """See NodeProof.known."""
        kept = self._kept.get(_digest(caller.bearer)) if caller.bearer is not None else None
        if kept is None or kept.ends <= self._clock():
            return None
        pod = self._pods.at((kept.claims.namespace, kept.claims.pod), kept.claims.pod_uid)
        return kept.claims.node if pod is not None and pod.node == kept.claims.node else None

    async def stands(self, node: str, caller: Caller) -> Proven | None:
        """See NodeProof.stands."""
        if caller.bearer is None:
            return None
        claims = await self._claims(caller.bearer, node)
        check_claims(self._agents, claims, node)
        pod = self._pods.at((claims.namespace, claims.pod), claims.pod_uid)
        if pod is None:
            await self._look(claims.node, claims.namespace, f"metadata.name={claims.pod}")
            pod = self._pods.at((claims.namespace, claims.pod), claims.pod_uid)
        check_pod(claims, pod)
        return Proven(claims.node, f"pod {claims.namespace}/{claims.pod} {claims.pod_uid}")

    async def look(self, node: str, account: Account) -> None:
        """Asks for a pod of that account on the node, if none is known: it may have been bound a moment ago. What is
        found is in the pods then. Raises Refused if it cannot be known."""
        if not account[1] or self._pods.has(node, account):
            return
        await self._look(node, account[0], f"spec.nodeName={node}", f"spec.serviceAccountName={account[1]}")

    async def _look(self, node: str, namespace: str, *fields: str) -> None:
        if wait := self._looks.wait(node):
            raise Refused(ServiceWord.RATE, f"the node {node} asks for too many pods that are not there; wait", wait)
        try:
            found = await self._source.look(namespace, *fields)
        except (AwayError, RefusedError, AccessError) as error:
            raise Refused(ServiceWord.REVIEW_UNAVAILABLE, f"pods cannot be looked for: {error}", _AGAIN_S) from None
        for pod in found:
            self._pods.found(pod)

    async def _claims(self, token: str, node: str) -> TokenClaims:
        digest, now = _digest(token), self._clock()
        kept = self._kept.get(digest)
        if kept is not None and kept.until > now:
            return kept.claims
        why, until = self._refused.get(digest, ("", 0.0))
        if until > now:
            raise _untaken(why)
        said = unproven_claims(token)
        if said is None:
            raise _untaken("it is no token of a service account")
        left = (said.expires or 0.0) - self._now().timestamp()
        if left < -_CLOCK_SKEW_S:
            raise _untaken("it has expired; the kubelet replaces it long before, so read it anew for each request")
        check_claims(self._agents, said, node)
        review = self._reviews.get(digest)
        if review is None:
            if kept is None and (len(self._reviews) >= _REVIEWS_MOST or self._strange.wait("all")):
                raise Refused(ServiceWord.BUSY, "too many tokens wait for the API server", _AGAIN_S)
            review = self._reviews[digest] = asyncio.create_task(self._review(token, digest, left))
            review.add_done_callback(lambda task: self._reviewed(digest, task))
        # Who asked first may go: the others still wait.
        return await asyncio.shield(review)

    async def _review(self, token: str, digest: bytes, left: float) -> TokenClaims:
        try:
            found = await self._source.review(token)
        except (AwayError, RefusedError, AccessError) as error:
            raise Refused(
                ServiceWord.REVIEW_UNAVAILABLE, f"the API server does not say whose the token is: {error}", _AGAIN_S
            ) from None
        now = self._clock()
        if isinstance(found, str):
            self._kept.pop(digest, None)
            _keep(self._refused, digest, (found, now + REFUSED_S), _REFUSED_MOST)
            raise _untaken(found)
        left = max(left, 0.0)
        _keep(self._kept, digest, _Kept(found, now + min(KEPT_S, left), now + left), _KEPT_MOST)
        return found

    def _reviewed(self, digest: bytes, task: asyncio.Task[TokenClaims]) -> None:
        del self._reviews[digest]
        if not task.cancelled():
            task.exception()  # whoever waited has it; it may be that nobody does any more


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _untaken(why: str) -> Refused:
    detail = f": {why}" if why else ""
    return Refused(
        ServiceWord.POD_TOKEN_UNTAKEN, f"the API server does not take the pod's token for this service{detail}"
    )


def _keep(kept: OrderedDict[bytes, T], digest: bytes, what: T, most: int) -> None:
    kept[digest] = what
    kept.move_to_end(digest)
    while len(kept) > most:
        kept.popitem(last=False)
