"""Trust bundles: the trust anchors of a trust domain, by which the certificates of its workloads are verified.

They are apart from credentials: anchors come and go while certificates live, and a node may trust domains in which it
issues nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from nodeseal.authority.certificates import fingerprint, parse


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """One trust domain's. Two are equal when they say the same of the same domain, in the same order."""

    trust_domain: str
    pem: str
    """The anchors' certificates."""
    fingerprints: frozenset[str]
    """The anchors, each by the SHA-256 of its whole certificate, in hexadecimal."""

    @classmethod
    def read(cls, trust_domain: str, pem: str) -> Self:
        """Of certificates in PEM form. Raises ValueError when they are none."""
        return cls(trust_domain, pem, frozenset(map(fingerprint, parse(pem.encode()))))
