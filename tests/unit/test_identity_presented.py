"""What an issuer presents is made sure of: for the key, for the identity, in time, by an anchor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.certificates import fingerprint
from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.identity.issuer import Fault, IssuerError, Svid
from nodeseal.identity.key import PrivateKey
from nodeseal.identity.presented import PresentedError, svid_of
from nodeseal.identity.signing import Signed, SigningIssuer
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId
from support.issued import issue

NOW = datetime(2026, 3, 1, tzinfo=UTC)
IDENTITY = SpiffeId("example.org", "default", "shipper")


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    init_authority(tmp_path / "ca", trust_domain="example.org", now=NOW)
    return Signer.load(tmp_path / "ca", NOW)


@pytest.fixture
def svid(signer: Signer) -> Svid:
    return issue(signer, IDENTITY, lifetime=timedelta(hours=1), now=NOW)


def bundle_of(signer: Signer) -> TrustBundle:
    return TrustBundle.read(signer.trust_domain, signer.bundle_pem)


def test_anchor_is_found_over_the_intermediates(signer: Signer, svid: Svid) -> None:
    assert svid.anchor == fingerprint(signer.root)


def test_certificate_of_another_key_is_refused(signer: Signer, svid: Svid) -> None:
    with pytest.raises(PresentedError, match="is for another key"):
        svid_of(IDENTITY, svid.chain_pem, PrivateKey.generate(), bundle_of(signer), now=NOW, issued=NOW)


def test_certificate_of_another_identity_is_refused(signer: Signer, svid: Svid) -> None:
    other = SpiffeId("example.org", "default", "siem")
    with pytest.raises(PresentedError, match=f"is for {IDENTITY}, not for {other}"):
        svid_of(other, svid.chain_pem, svid.key, bundle_of(signer), now=NOW, issued=NOW)


def test_expired_certificate_is_refused(signer: Signer, svid: Svid) -> None:
    later = NOW + timedelta(hours=1)
    with pytest.raises(PresentedError, match="expired at 2026-03-01 01:00:00Z"):
        svid_of(IDENTITY, svid.chain_pem, svid.key, bundle_of(signer), now=later, issued=NOW)


def test_certificate_that_no_anchor_vouches_for_is_refused(svid: Svid, tmp_path: Path) -> None:
    init_authority(tmp_path / "other", trust_domain="example.org", now=NOW)
    other = bundle_of(Signer.load(tmp_path / "other", NOW))
    with pytest.raises(PresentedError, match=r"is not signed by a trust anchor of example\.org"):
        svid_of(IDENTITY, svid.chain_pem, svid.key, other, now=NOW, issued=NOW)


@pytest.mark.parametrize("chain", ["", "nothing", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(signer: Signer, svid: Svid, chain: str) -> None:
    with pytest.raises(PresentedError, match="cannot be read as PEM"):
        svid_of(IDENTITY, chain, svid.key, bundle_of(signer), now=NOW, issued=NOW)


class ConfusedIssuer(SigningIssuer):
    """Gives everybody the same certificate."""

    trust_domain = "example.org"

    def __init__(self, signer: Signer, svid: Svid) -> None:
        super().__init__(now=lambda: NOW)
        self.bundle = bundle_of(signer)
        self.requests: list[str] = []
        self._svid = svid

    def describe(self) -> str:
        return "the confused one"

    async def sign(self, identity: SpiffeId, request: str, present: Svid | None) -> Signed:
        self.requests.append(request)
        return Signed(self._svid.chain_pem, NOW)

    async def changes(self) -> AsyncIterator[TrustBundle]:
        yield self.bundle

    async def condition(self) -> tuple[Fault, ...]:
        return ()

    async def close(self) -> None:
        pass


def test_issuer_that_answers_for_another_key_is_told_of_by_its_name(signer: Signer, svid: Svid) -> None:
    issuer = ConfusedIssuer(signer, svid)
    for _ in range(2):
        with pytest.raises(IssuerError, match=r"the confused one gave .* it is for another key"):
            asyncio.run(issuer.issue(IDENTITY))
    assert len(set(issuer.requests)) == 2, "each time for a fresh key"
