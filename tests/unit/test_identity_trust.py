"""Whom a node verifies its peers by."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeseal.authority.renewal import YEAR
from nodeseal.identity.trust import TrustBundle, TrustSet, UnusableAnchor
from nodeseal.mesh.trust_anchor import TrustAnchor
from support.anchors import DOMAIN, make_ca, renewed_root, root_of
from support.certificates import self_signed


def bundle_of(*anchors: TrustAnchor) -> TrustBundle:
    return TrustBundle.read(DOMAIN, "".join(one.pem for one in anchors))


def roots(tmp_path: Path, count: int) -> list[TrustAnchor]:
    return [root_of(make_ca(tmp_path / f"ca{number}")) for number in range(count)]


def test_without_anchors_in_the_mesh_state_those_of_the_issuer_count(tmp_path: Path) -> None:
    one, other = roots(tmp_path, 2)
    assert TrustSet.of(bundle_of(one, other), one.key, ()) == TrustSet(bundle_of(one, other))


def test_anchors_of_the_mesh_state_take_the_place_of_the_issuers(tmp_path: Path) -> None:
    own, former, new = roots(tmp_path, 3)
    found = TrustSet.of(bundle_of(own, former), own.key, (own, new))
    assert found.bundle.fingerprints == {own.key, new.key}
    assert TrustBundle.read(DOMAIN, found.bundle.pem) == found.bundle


def test_node_trusts_what_it_issues_whatever_the_mesh_state_says(tmp_path: Path) -> None:
    own, new = roots(tmp_path, 2)
    assert TrustSet.of(bundle_of(own), own.key, (new,)).bundle.fingerprints == {own.key, new.key}


def test_order_in_the_mesh_state_means_nothing(tmp_path: Path) -> None:
    one, other = roots(tmp_path, 2)
    assert TrustSet.of(bundle_of(one), one.key, (one, other)) == TrustSet.of(bundle_of(one), one.key, (other, one))


@pytest.mark.parametrize("years", [5, 20])
def test_of_a_root_and_its_renewal_the_core_is_told_first_what_is_valid_for_longer(tmp_path: Path, years: int) -> None:
    """It takes the first: so what is verified by the other comes to an end."""
    (own,) = roots(tmp_path, 1)
    other = renewed_root(tmp_path / "ca0", lifetime=years * YEAR)
    found = TrustSet.of(bundle_of(own), own.key, (own, other)).bundle
    assert found == TrustSet.of(bundle_of(own), own.key, (other, own)).bundle
    assert found.pem == (own.pem + other.pem if years == 5 else other.pem + own.pem)


def test_anchor_that_verifies_nobody_is_told_and_left_out(tmp_path: Path) -> None:
    (own,) = roots(tmp_path, 1)
    nothing = TrustAnchor.read("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    application = TrustAnchor.read(self_signed(tmp_path)[0].read_text())
    found = TrustSet.of(bundle_of(own), own.key, (nothing, own, application))
    assert found.bundle.fingerprints == {own.key}
    assert set(found.unusable) == {
        UnusableAnchor(nothing.key, "is no certificate that can be read"),
        UnusableAnchor(application.key, "has no key usage"),
    }


def test_where_no_anchor_can_be_used_those_of_the_issuer_count(tmp_path: Path) -> None:
    own, former = roots(tmp_path, 2)
    nothing = TrustAnchor.read("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    found = TrustSet.of(bundle_of(own, former), own.key, (nothing,))
    assert (found.bundle.fingerprints, len(found.unusable)) == ({own.key, former.key}, 1)
