"""SPIFFE ids, short where the whole does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def short_identity(identity: str) -> str:
    """ "spiffe://td/ns/x/sa/y" as "x/y"; any other as it is."""
    parts = identity.split("/")
    return f"{parts[4]}/{parts[6]}" if len(parts) == 7 and parts[3] == "ns" and parts[5] == "sa" else identity


def shortening(own: Iterable[str]) -> Callable[[str], str]:
    """short_identity for those of the one trust domain that the nodes shown have, which goes without saying. An id of
    another domain stays whole: as "x/y" it would look like one of ours. `own`: the trust domains of the nodes."""
    domains = set(own)
    if len(domains) != 1:
        return str
    ours = f"spiffe://{domains.pop()}/"
    return lambda identity: short_identity(identity) if identity.startswith(ours) else identity
