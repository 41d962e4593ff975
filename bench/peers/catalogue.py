"""All the peers that the bench brings along."""

from __future__ import annotations

from collections.abc import Mapping

from bench.peers.configured import EnvoyHbone, EnvoyMtls, Haproxy, Nginx
from bench.peers.nodeseal import Nodeseal
from bench.peers.peer import Peer
from bench.peers.plain import Direct, Relay


def all_peers(settings: Mapping[str, object]) -> list[Peer]:
    """In the order of their visits. `settings`: for nodeseal's agents."""
    return [Direct(), Relay(), Nodeseal(settings), EnvoyHbone(), EnvoyMtls(), Haproxy(), Nginx()]
