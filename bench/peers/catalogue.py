"""All the peers that the bench brings along."""

from __future__ import annotations

from collections.abc import Mapping

from bench.peers.configured import EnvoyHbone, EnvoyMtls, Haproxy, Nginx
from bench.peers.nodeseal import Nodeseal, NodesealEarly, NodesealInbound, NodesealOutbound, NodesealOutside
from bench.peers.peer import Peer
from bench.peers.plain import Direct, Relay


def ways_of_nodeseal(settings: Mapping[str, object]) -> list[Peer]:
    """Measured when they are named."""
    return [way(settings) for way in (NodesealEarly, NodesealOutbound, NodesealInbound, NodesealOutside)]


def all_peers(settings: Mapping[str, object]) -> list[Peer]:
    """In the order of their visits. `settings`: for nodeseal's agents."""
    return [Direct(), Relay(), Nodeseal(settings), EnvoyHbone(), EnvoyMtls(), Haproxy(), Nginx()]
