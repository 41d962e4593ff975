"""The kinds of keys that nodeseal makes: of workloads, as a configuration says, and of a CA, as its commands say."""

from enum import StrEnum


class KeyKind(StrEnum):
    """The word in configurations, options and JSON."""

    P256 = "p256"
    P384 = "p384"
    ED25519 = "ed25519"
