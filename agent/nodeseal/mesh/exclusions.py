"""What of a workload's traffic passes by nodeseal because the mesh state says so: ports and ranges of addresses."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from nodeseal.mesh.address import Address
from nodeseal.mesh.reasons import WhyPlaintext

Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """The ports from `first` to `last`, both included, 1 to 65535."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Excluded:
    """What is excluded in one direction: connections to any of `ports`, and connections with any of `networks`."""

    ports: tuple[PortRange, ...] = ()
    """Inbound: the workload's own; outbound: those that it dials."""
    networks: tuple[Network, ...] = ()
    """Of the other side: inbound those of clients, outbound those that it dials."""

    def why(self, remote: Address, port: int) -> WhyPlaintext | None:
        """The reason if a connection with `remote` is excluded, dialled at `port`; else None."""
        if any(item.first <= port <= item.last for item in self.ports):
            return WhyPlaintext.EXCLUDED_PORT
        if any(remote in network for network in self.networks):
            return WhyPlaintext.EXCLUDED_RANGE
        return None


_NOTHING = Excluded()


@dataclass(frozen=True, slots=True)
class Exclusions:
    """What is excluded in both directions. Between two enrolled workloads a connection passes by nodeseal only if the
    one excludes it outbound and the other inbound: nothing is in plaintext that only one of them wanted so."""

    inbound: Excluded = _NOTHING
    outbound: Excluded = _NOTHING

    def __bool__(self) -> bool:
        return self != NO_EXCLUSIONS


NO_EXCLUSIONS = Exclusions()
