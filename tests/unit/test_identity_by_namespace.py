"""Several issuers of one node: each serves the workloads of its namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.identity import embedded
from nodeseal.identity.by_namespace import IssuersByNamespace
from nodeseal.identity.embedded import EmbeddedIssuer
from nodeseal.identity.issuer import IssuerError
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def issuer_of(directory: Path, trust_domain: str = "example.org") -> EmbeddedIssuer:
    init_authority(directory, trust_domain=trust_domain, now=NOW)
    return EmbeddedIssuer(directory, timedelta(days=1), now=lambda: NOW)


def test_each_namespace_has_its_issuer_and_all_anchors_are_trusted(tmp_path: Path) -> None:
    async def story() -> None:
        default, payments = issuer_of(tmp_path / "default"), issuer_of(tmp_path / "payments")
        issuer = IssuersByNamespace(default, {"payments": payments, "cards": payments})
        for namespace, expected in (("default", default), ("payments", payments), ("cards", payments)):
            svid = await issuer.issue(SpiffeId("example.org", namespace, "a"))
            assert svid.anchor == expected.anchor
        assert issuer.bundle.fingerprints == {default.anchor, payments.anchor}
        assert issuer.anchor == default.anchor
        assert issuer.bundle is issuer.bundle
        assert len(await issuer.condition()) == len(await default.condition()) + len(await payments.condition())
        await issuer.close()

    asyncio.run(story())


def test_change_of_any_of_them_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "CHECK_S", 0.01)

    async def story() -> None:
        default, payments = issuer_of(tmp_path / "default"), issuer_of(tmp_path / "payments")
        issuer_of(tmp_path / "other")
        issuer = IssuersByNamespace(default, {"payments": payments})
        changes = issuer.changes()
        async with asyncio.timeout(20):
            before = await anext(changes)
            root = tmp_path / "payments" / "root.pem"
            root.write_text(root.read_text() + (tmp_path / "other" / "root.pem").read_text())
            while (after := await anext(changes)) == before:
                pass
            assert len(after.fingerprints) == 3
        await changes.aclose()  # type: ignore[attr-defined]
        await issuer.close()

    asyncio.run(story())


def test_issuers_of_two_trust_domains_are_refused(tmp_path: Path) -> None:
    default, other = issuer_of(tmp_path / "default"), issuer_of(tmp_path / "other", "other.org")
    with pytest.raises(IssuerError, match=r"other is for the trust domain other\.org, and .* for example\.org"):
        IssuersByNamespace(default, {"payments": other})


def test_bundles_of_other_domains_are_those_of_the_first_that_has_them(tmp_path: Path) -> None:
    async def story() -> None:
        default, payments = issuer_of(tmp_path / "default"), issuer_of(tmp_path / "payments")
        issuer = IssuersByNamespace(default, {"payments": payments})
        assert issuer.others is None
        payments.others = {"other.org": "theirs", "third.org": "third"}
        assert issuer.others == payments.others
        default.others = {"other.org": "ours"}
        assert issuer.others == {"other.org": "ours", "third.org": "third"}  # never both of one domain
        await issuer.close()

    asyncio.run(story())


def test_failure_of_one_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_self: EmbeddedIssuer) -> AsyncIterator[TrustBundle]:
        raise RuntimeError("a mistake")
        yield

    async def story() -> None:
        default, payments = issuer_of(tmp_path / "default"), issuer_of(tmp_path / "payments")
        monkeypatch.setattr(payments, "changes", lambda: broken(payments))
        changes = IssuersByNamespace(default, {"payments": payments}).changes()
        async with asyncio.timeout(20):
            with pytest.raises(RuntimeError, match="a mistake"):
                [bundle async for bundle in changes]
        await default.close()
        await payments.close()

    asyncio.run(story())
