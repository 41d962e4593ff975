"""Roots, as tests need many: their certificates in PEM form, by way of the CA that `nodeseal ca init` makes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from nodeseal.authority.anchors import read_anchors
from nodeseal.authority.creation import init_authority
from nodeseal.authority.renewal import YEAR
from nodeseal.mesh.trust_anchor import TrustAnchor

DOMAIN = "example.org"


def make_ca(
    directory: Path,
    *,
    trust_domain: str = DOMAIN,
    ago: timedelta = timedelta(),
    root_lifetime: timedelta = 10 * YEAR,
    intermediate_lifetime: timedelta = YEAR,
) -> Path:
    """A CA directory, made so long ago."""
    init_authority(
        directory,
        trust_domain=trust_domain,
        root_lifetime=root_lifetime,
        intermediate_lifetime=intermediate_lifetime,
        now=datetime.now(UTC) - ago,
    )
    return directory


def root_of(ca: Path) -> TrustAnchor:
    """The root of a CA directory."""
    (anchor,) = read_anchors(ca / "root.pem")
    return anchor
