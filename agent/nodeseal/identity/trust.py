"""Trust bundles: the trust anchors of a trust domain, by which the certificates of its workloads are verified.

They are apart from credentials: anchors come and go while certificates live, and a node may trust domains in which it
issues nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from nodeseal.authority.anchors import usable_anchor
from nodeseal.authority.certificates import fingerprint, parse, pem
from nodeseal.mesh.trust_anchor import TrustAnchor


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

    @classmethod
    def none(cls, trust_domain: str) -> Self:
        """Nothing is known yet, and nobody trusted."""
        return cls(trust_domain, "", frozenset())

    @classmethod
    def joined(cls, trust_domain: str, bundles: Iterable[TrustBundle]) -> Self:
        """The anchors of all of them, each once, in the order of their fingerprints."""
        certs = {fingerprint(cert): cert for one in bundles if one.pem for cert in parse(one.pem.encode())}
        return cls(trust_domain, "".join(pem(certs[key]) for key in sorted(certs)), frozenset(certs))


@dataclass(frozen=True, slots=True)
class UnusableAnchor:
    """An anchor of the mesh state that verifies nobody. `why` follows "it"."""

    fingerprint: str
    why: str


@dataclass(frozen=True, slots=True)
class TrustSet:
    """What a node verifies peers of its own trust domain by.

    That are the anchors of the mesh state, if it has any, and else those of the node's issuer. The one by which the
    issuer issues is always among them: a node trusts what it issues itself.
    """

    bundle: TrustBundle
    unusable: tuple[UnusableAnchor, ...] = ()

    @classmethod
    def of(cls, issuer: TrustBundle, anchor: str, anchors: Iterable[TrustAnchor]) -> Self:
        """`issuer`: its bundle; `anchor`: the fingerprint of the one by which it issues; `anchors`: the mesh's."""
        found = {one.key: one for one in anchors}
        if not found:
            return cls(issuer)
        unusable, kept = [], {}
        for key, one in sorted(found.items()):
            why = usable_anchor(one.pem)
            if why is None:
                kept[key] = one.pem
            else:
                unusable.append(UnusableAnchor(key, why))
        own = {fingerprint(cert): pem(cert) for cert in parse(issuer.pem.encode())}
        # Nothing that can be used is no reason to trust nobody.
        kept.update({anchor: own[anchor]} if anchor in own and kept else own if not kept else {})
        return cls(TrustBundle(issuer.trust_domain, _ordered(kept), frozenset(kept)), tuple(unusable))


def _ordered(anchors: Mapping[str, str]) -> str:
    """The PEM of these, by fingerprint. Of two with the same name and key, as a root and the one that renews it, the
    core takes the first that is valid: that is the one that is valid for longer, so that the other gets out of use."""
    ends = {key: parse(text.encode())[0].not_valid_after_utc for key, text in anchors.items()}
    return "".join(anchors[key] for key in sorted(anchors, key=lambda key: (-ends[key].timestamp(), key)))
