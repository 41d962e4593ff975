"""Several issuers as one: each for the workloads of its namespaces, one for all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from nodeseal.identity.issuer import Fault, Issuer, IssuerError, Svid
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId


class IssuersByNamespace(Issuer):
    """Peers are verified by the trust anchors of all of them, and all issue in one trust domain."""

    def __init__(self, default: Issuer, others: Mapping[str, Issuer]) -> None:
        """`others`: namespace -> its issuer; one may serve several. Raises IssuerError when they are of different trust
        domains."""
        self._default = default
        self._others = dict(others)
        self._all = list(dict.fromkeys((default, *others.values())))
        for one in self._all:
            if one.trust_domain != default.trust_domain:
                raise IssuerError(
                    f"{one.describe()} is for the trust domain {one.trust_domain}, and {default.describe()} for "
                    f"{default.trust_domain}: give a node issuers of one trust domain"
                )
        self.trust_domain = default.trust_domain
        self._joined: tuple[list[TrustBundle], TrustBundle] | None = None

    @property
    def bundle(self) -> TrustBundle:  # type: ignore[override]
        """See Issuer.bundle: all anchors."""
        parts = [one.bundle for one in self._all]
        if self._joined is None or self._joined[0] != parts:
            self._joined = parts, TrustBundle.joined(self.trust_domain, parts)
        return self._joined[1]

    @property
    def anchor(self) -> str:  # type: ignore[override]
        """See Issuer.anchor: that of the issuer for all others."""
        return self._default.anchor

    @property
    def others(self) -> Mapping[str, str] | None:  # type: ignore[override]
        """See Issuer.others: of each domain what the first of them gives that has it. They are not merged."""
        parts = [one.others for one in self._all if one.others is not None]
        return {domain: pem for part in reversed(parts) for domain, pem in part.items()} if parts else None

    def describe(self) -> str:
        """See Issuer.describe."""
        return self._default.describe()

    async def begin(self) -> None:
        """See Issuer.begin."""
        await asyncio.gather(*(one.begin() for one in self._all))

    async def issue(self, identity: SpiffeId, present: Svid | None = None) -> Svid:
        """See Issuer.issue."""
        return await self._of(identity).issue(identity, present)

    def superseded(self, svid: Svid) -> bool:
        """See Issuer.superseded."""
        return self._of(svid.identity).superseded(svid)

    def anchor_for(self, identity: SpiffeId) -> str:
        """See Issuer.anchor_for."""
        return self._of(identity).anchor

    async def changes(self) -> AsyncIterator[TrustBundle]:
        """See Issuer.changes. Raises what one of them raises."""
        changed = asyncio.Event()

        async def follow(one: Issuer) -> None:
            async for _bundle in one.changes():
                changed.set()

        following = [asyncio.create_task(follow(one)) for one in self._all]
        for task in following:
            task.add_done_callback(lambda _task: changed.set())
        try:
            while True:
                await changed.wait()
                changed.clear()
                for task in following:
                    if task.done():
                        task.result()
                yield self.bundle
        finally:
            for task in following:
                task.cancel()

    async def condition(self) -> tuple[Fault, ...]:
        """See Issuer.condition."""
        found = await asyncio.gather(*(one.condition() for one in self._all))
        return tuple(fault for faults in found for fault in faults)

    async def close(self) -> None:
        """See Issuer.close."""
        await asyncio.gather(*(one.close() for one in self._all))

    def _of(self, identity: SpiffeId) -> Issuer:
        return self._others.get(identity.namespace, self._default)
