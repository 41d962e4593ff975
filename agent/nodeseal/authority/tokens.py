"""Join tokens: what a node proves itself with the first time. The store has their digests only.

A token is 256 random bits, so that its digest needs no salt and no slow hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from nodeseal.contracts.authority import TOKEN_PREFIX

_BYTES = 32
_ID_DIGITS = 12


class TokenState(StrEnum):
    """What has become of a token."""

    OPEN = "open"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Token:
    """What the store has of a token. `id`: by which people name it; times are in UTC."""

    id: str
    node: str
    created: datetime
    expires: datetime
    used: datetime | None = None
    revoked: datetime | None = None

    def state(self, now: datetime) -> TokenState:
        """Whether it can be used."""
        if self.revoked is not None:
            return TokenState.REVOKED
        if self.used is not None:
            return TokenState.USED
        return TokenState.EXPIRED if now >= self.expires else TokenState.OPEN


def new_token() -> str:
    """A fresh one."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_BYTES)


def digest_of(token: str) -> bytes:
    """By which the store knows it."""
    return hashlib.sha256(token.encode()).digest()


def id_of(digest: bytes) -> str:
    """By which people name it; of no use to whoever wants to join."""
    return digest.hex()[:_ID_DIGITS]
