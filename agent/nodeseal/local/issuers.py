"""What a node's configuration says about the certificates of its workloads."""

from __future__ import annotations

from enum import StrEnum


class KeyKind(StrEnum):
    """Of the keys that are made on this node."""

    P256 = "p256"
    P384 = "p384"
    ED25519 = "ed25519"
