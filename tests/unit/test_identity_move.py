"""Certificates that are replaced before their time: at once when they are revoked; and when their issuer goes over to
another root, in an hour, not all at once, and not before others trust that root."""

from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from nodeseal.clock import utc_now
from nodeseal.identity import embedded
from nodeseal.identity.by_namespace import IssuersByNamespace
from nodeseal.identity.credentials import Credential, Credentials
from nodeseal.identity.embedded import EmbeddedIssuer
from nodeseal.identity.issuer import Issuer
from nodeseal.identity.signing import MOVE_MOST
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal.mesh.trust_anchor import TrustAnchor
from support.anchors import DOMAIN, make_ca, root_of

HOUR = timedelta(hours=1)
WORKLOADS = [SpiffeId(DOMAIN, "default", f"w{number}") for number in range(60)]


class Rotation:
    """A node with a CA directory, which another root takes over."""

    def __init__(self, tmp_path: Path) -> None:
        self.began = self.time = utc_now()
        self.directory, self.next = make_ca(tmp_path / "ca"), make_ca(tmp_path / "next")
        self.old, self.new = root_of(self.directory), root_of(self.next)
        self.anchors: tuple[TrustAnchor, ...] = (self.old, self.new)
        self.issuer = EmbeddedIssuer(self.directory, timedelta(hours=24), now=lambda: self.time)

    def credentials(self, issuer: Issuer | None = None) -> Credentials:
        return Credentials(issuer or self.issuer, now=lambda: self.time, anchors=lambda: self.anchors)

    async def go_over(self) -> None:
        for name in ("root.pem", "intermediate.key", "intermediate.pem"):
            shutil.copyfile(self.next / name, self.directory / name)
        changes = self.issuer.changes()
        while self.issuer.anchor != self.new.key:
            await anext(changes)
        await changes.aclose()  # type: ignore[attr-defined]


@pytest.fixture
def rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rotation:
    monkeypatch.setattr(embedded, "CHECK_S", 0.01)
    return Rotation(tmp_path)


def test_all_are_replaced_within_an_hour_and_not_at_once(rotation: Rotation) -> None:
    async def story() -> None:
        credentials = rotation.credentials()
        held = [await credentials.issue(identity) for identity in WORKLOADS]

        def due() -> int:
            return sum(map(credentials.superseded, held))

        rotation.time += 3 * HOUR
        assert due() == 0
        await rotation.go_over()
        counts = []
        for _ in range(4):
            counts.append(due())
            rotation.time += MOVE_MOST / 3
        assert counts[0] < len(held) / 4
        assert counts == sorted(counts)
        assert 5 < counts[1] < len(held) - 5
        assert counts[3] == len(held)
        after = await credentials.issue(WORKLOADS[0], held[0])
        assert after.svid.anchor == rotation.new.key
        assert not credentials.superseded(after)
        await rotation.issuer.close()

    asyncio.run(story())


def test_none_is_replaced_by_what_others_do_not_trust_yet(rotation: Rotation) -> None:
    async def story() -> None:
        rotation.anchors = (rotation.old,)
        credentials = rotation.credentials()
        held = await credentials.issue(WORKLOADS[0])
        await rotation.go_over()
        rotation.time += 2 * HOUR
        assert not credentials.superseded(held)
        rotation.anchors = (rotation.old, rotation.new)
        assert credentials.superseded(held)
        await rotation.issuer.close()

    asyncio.run(story())


def test_each_issuer_of_a_node_goes_over_by_itself(rotation: Rotation, tmp_path: Path) -> None:
    default = EmbeddedIssuer(make_ca(tmp_path / "default"), timedelta(hours=24), now=lambda: rotation.time)

    async def story() -> None:
        rotation.anchors += (root_of(tmp_path / "default"),)
        credentials = rotation.credentials(IssuersByNamespace(default, {"payments": rotation.issuer}))

        async def issued(namespace: str) -> Credential:
            return await credentials.issue(SpiffeId(DOMAIN, namespace, "a"))

        usual, other = await issued("default"), await issued("payments")
        assert other.svid.anchor == rotation.old.key
        await rotation.go_over()
        rotation.time += 2 * HOUR
        assert (credentials.superseded(usual), credentials.superseded(other)) == (False, True)
        for issuer in (default, rotation.issuer):
            await issuer.close()

    asyncio.run(story())


def test_one_that_was_revoked_is_replaced_at_once(rotation: Rotation) -> None:
    async def story() -> None:
        revoked: set[str] = set()
        credentials = Credentials(
            rotation.issuer, now=lambda: rotation.time, revoked=lambda svid: svid.serial in revoked
        )
        held = await credentials.issue(WORKLOADS[0])
        assert not credentials.superseded(held)
        revoked.add(held.svid.serial)
        assert credentials.superseded(held)
        assert not credentials.superseded(await credentials.issue(WORKLOADS[0], held))
        await rotation.issuer.close()

    asyncio.run(story())
