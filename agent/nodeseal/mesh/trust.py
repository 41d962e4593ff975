"""What a node tells of its CA, so that others see whether theirs is another. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

DIGEST_LENGTH = 32
"""Of a fingerprint, in hexadecimal digits: half of one is enough to compare, and nobody trusts it."""


@dataclass(frozen=True, slots=True)
class Trust:
    """A node's CA: `anchors` are digests of the roots that it trusts, `issuer` that of the one by which it issues."""

    anchors: frozenset[str]
    issuer: str

    @classmethod
    def of(cls, anchors: Iterable[str], issuer: str) -> Self:
        """Of whole fingerprints."""
        return cls(frozenset(one[:DIGEST_LENGTH] for one in anchors), issuer[:DIGEST_LENGTH])

    @property
    def shown(self) -> str:
        """For people: the beginning of the issuer's digest."""
        return f"root {self.issuer[:8]}"
