"""Which addresses are certain to be outside the mesh, without asking the mesh state: the node's configuration names
them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nodeseal.mesh.address import Address
from nodeseal.mesh.exclusions import Network


@dataclass(frozen=True, slots=True)
class Extent:
    """Of ranges that hold an address the smallest counts."""

    networks: tuple[Network, ...] = ()
    """All that pods and services have. Of a family with none nothing is certain."""
    outside: tuple[Network, ...] = ()
    """Outside all the same."""

    def __bool__(self) -> bool:
        """Whether anything is certain."""
        return bool(self.networks or self.outside)

    def is_outside(self, address: Address) -> bool:
        """Whether the address is certain to be outside, should the mesh state not have it."""
        inside, named = _smallest(self.networks, address), _smallest(self.outside, address)
        if inside is None and named is None:
            return any(network.version == address.version for network in self.networks)
        return named is not None and (inside is None or named > inside)

    def names(self, address: Address) -> bool:
        """Whether the address is outside by its name. Then it is even if it is a service's, or a workload's that is not
        enrolled."""
        return self.is_outside(address) and _smallest(self.outside, address) is not None


def _smallest(networks: Iterable[Network], address: Address) -> int | None:
    """The longest prefix of those that hold the address; None: no one does."""
    return max((network.prefixlen for network in networks if address in network), default=None)
