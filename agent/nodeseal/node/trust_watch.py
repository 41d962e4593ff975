"""The trust anchors of this node: kept in its cores, and told to the other nodes, with those that it still needs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime

from nodeseal.cores.client import CoreClient, CoreError, CoreGone
from nodeseal.cores.link import CoreLink
from nodeseal.cores.supervisor import CoreSupervisor
from nodeseal.cores.trust_pusher import TrustPusher
from nodeseal.enrolment.enrolments import Enrolments
from nodeseal.identity.credentials import Credentials
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.problem import Problem
from nodeseal.mesh.reasons import ProblemWord
from nodeseal.mesh.trust import Need, Trust, digest_of, needs_of, told_count

log = logging.getLogger("nodeseal.agent")


class TrustWatch:
    """`pusher` brings the anchors to the cores, `credentials` says which these are."""

    def __init__(
        self,
        core: CoreSupervisor,
        pusher: TrustPusher,
        credentials: Credentials,
        enrolments: Enrolments,
        now: Callable[[], datetime],
    ) -> None:
        self._core = core
        self._pusher = pusher
        self._credentials = credentials
        self._enrolments = enrolments
        self._now = now
        self._known: TrustBundle | None = None
        self._told: Trust | None = None
        self._connections: Mapping[str, int] | None = None
        self._failure: str | None = None

    async def push(self) -> bool:
        """Brings the cores what they do not have yet. Whether the current one has something else than at the last time,
        whoever brought it. Never raises: what one does not take is tried again."""
        try:
            await self._pusher.push()
        except CoreError as error:
            if self._failure is None:
                log.error("the core did not take the trust anchors: %s; sending them again", error)
            self._failure = str(error)
            return False
        self._failure = None
        before, self._known = self._known, self._pusher.given
        return self._known != before

    async def look(self) -> bool:
        """Asks all cores which anchors their connections need; whether there is something else to tell. Never raises:
        while one does not answer, nobody knows."""
        found = await asyncio.gather(*map(_connections_of, self._core.links()))
        before, told = self._connections, self._connections or {}
        if any(one is None for one in found):
            self._connections = None
        else:
            total = Counter[str]()
            for one in found:
                total.update(one or {})
            self._connections = {anchor: told_count(count, told.get(anchor, 0)) for anchor, count in total.items()}
        return self._connections != before

    def published(self) -> Trust | None:
        """What other nodes are told: the anchors that the core has, not those that it should have. None before the
        first time; while no core runs it is what the last one had."""
        given, issuer = self._pusher.given, self._credentials.anchor
        if given is not None:
            self._told = Trust.of(given.fingerprints, issuer, self._needs(issuer, given.fingerprints))
        return self._told

    def _needs(self, issuer: str, own: Collection[str]) -> list[Need] | None:
        """`own`: the fingerprints of the own domain's anchors. None: a workload's certificate is not known, as of one
        that was adopted a moment ago, or it is not known what connections need."""
        if self._connections is None:
            return None
        domain = set(map(digest_of, own))
        connections = {anchor: count for anchor, count in self._connections.items() if count and anchor in domain}
        certificates = []
        for enrolment in self._enrolments.values():
            if enrolment.installed is None:
                continue
            if enrolment.installed.credential is None:
                return None
            svid = enrolment.installed.credential.svid
            if svid.not_after > self._now():
                certificates.append((svid.anchor, int(svid.not_after.timestamp()) + 1))
        return list(needs_of(certificates, connections, issuer))

    def problems(self) -> Iterator[Problem]:
        """See nodeseal.node.problems."""
        for one in self._credentials.trust_set.unusable:
            text = f"the trust anchor {one.fingerprint[:16]} of the mesh state verifies nobody: it {one.why}"
            yield Problem(ProblemWord.TRUST_ANCHOR_UNUSABLE, text, "nodeseal trust remove, or correct its file")
        if self._failure is not None:
            text = f"the core did not take the trust anchors: {self._failure}"
            yield Problem(ProblemWord.TRUST_NOT_GIVEN, text, "it is tried again")


async def _connections_of(link: CoreLink) -> Mapping[str, int] | None:
    """None: it does not say."""
    try:
        return await link.call(CoreClient.anchors)
    except CoreGone:
        return {}
    except CoreError:
        return None
