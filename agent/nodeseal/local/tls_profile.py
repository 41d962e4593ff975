"""Which cryptography tunnels use, as a node's configuration says it: `tls: {profile: fips}`."""

from __future__ import annotations

from enum import StrEnum

from nodeseal.documents.schema import Fields


class TlsProfile(StrEnum):
    """Of handshakes and records between cores."""

    DEFAULT = "default"
    FIPS = "fips"
    """OpenSSL's FIPS module alone: NIST's curves, ECDSA and RSA, AES-GCM."""


def read_tls_profile(fields: Fields, name: str) -> TlsProfile:
    """The field `name`, a mapping. Problems are noted with the fields."""
    node = fields.node(name, "a mapping of settings of TLS", required=False)
    if node is None:
        return TlsProfile.DEFAULT
    inner = Fields(fields.problems, node, fields.at(name))
    profile = inner.choice("profile", TlsProfile.DEFAULT)
    inner.close()
    return profile
