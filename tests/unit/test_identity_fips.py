"""The profile fips refuses Ed25519, wherever it is in what a workload is verified by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeseal.authority.creation import init_authority
from nodeseal.authority.renewal import renew
from nodeseal.authority.signer import Signer
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.fips import unapproved, unapproved_svid
from nodeseal.identity.trust import TrustBundle
from nodeseal.mesh.spiffe import SpiffeId
from support.issued import issue

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("leaf", KeyKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("intermediate", KeyKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("root", KeyKind, ids=lambda kind: kind.value)
def test_ed25519_is_refused_on_every_level(tmp_path: Path, root: KeyKind, intermediate: KeyKind, leaf: KeyKind) -> None:
    ca = tmp_path / "ca"
    init_authority(ca, trust_domain="example.org", kind=root, now=NOW)
    renew(ca, now=NOW, kind=intermediate)
    signer = Signer.load(ca, NOW)
    svid = issue(signer, SpiffeId("example.org", "default", "web"), lifetime=timedelta(hours=1), now=NOW, kind=leaf)
    why = unapproved_svid(svid, TrustBundle.read("example.org", signer.bundle_pem))
    assert (why is None) == (KeyKind.ED25519 not in (root, intermediate, leaf))
    assert (unapproved((*signer.chain, signer.root)) is None) == (KeyKind.ED25519 not in (root, intermediate))


def test_anchor_of_ed25519_that_does_not_verify_the_workload_is_no_matter(tmp_path: Path) -> None:
    for name, kind in (("ca", KeyKind.P256), ("other", KeyKind.ED25519)):
        init_authority(tmp_path / name, trust_domain="example.org", kind=kind, now=NOW)
    signer = Signer.load(tmp_path / "ca", NOW)
    both = signer.bundle_pem + (tmp_path / "other" / "root.pem").read_text()
    svid = issue(signer, SpiffeId("example.org", "default", "web"), lifetime=timedelta(hours=1), now=NOW)
    assert unapproved_svid(svid, TrustBundle.read("example.org", both)) is None
