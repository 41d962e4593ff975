"""Addresses with a port, one type per meaning, so that a source cannot be passed where a destination is meant."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET, inet_pton
from typing import Self, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

HBONE_PORT = 15008
"""Where a workload's core accepts mutual TLS from peers."""

MESH_PORTS = frozenset({15001, 15006, HBONE_PORT})
"""Ports that belong to a mesh itself (Istio's outbound and inbound capture, HBONE): forwarding to them makes loops."""


class AddressError(ValueError):
    """A text is not an IP address, or not an IP address with a port."""


def parse_address(text: str) -> Address:
    """Reads an IPv4 or IPv6 address without a zone. Raises AddressError."""
    try:
        # Most are of this form: three times as fast as trying every one.
        return IPv4Address(inet_pton(AF_INET, text))
    except (OSError, ValueError):
        pass
    try:
        address = ip_address(text)
    except ValueError:
        raise AddressError(f"{text[:80]!a} is not an IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise AddressError(f"{text[:80]!a} has a zone; an address without '%' is expected")
    return address


@dataclass(frozen=True, slots=True, order=True)
class _Endpoint:
    """`address` and `port` (0 to 65535, host order)."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "1.2.3.4:80" or "[2001:db8::1]:80". Raises AddressError."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
            raise AddressError(f"{text[:80]!a} does not end with ':' and a port from 0 to 65535")
        address = parse_address(host[1:-1] if bracketed else host)
        if bracketed != (address.version == 6):
            raise AddressError(f"{text[:80]!a}: an IPv6 address stands in brackets, an IPv4 address does not")
        return cls(address, int(port))


class OriginalDestination(_Endpoint):
    """What an application dialled, before anything decided where it goes."""

    __slots__ = ()


class TunnelAddress(_Endpoint):
    """The authority of an HBONE CONNECT: where the far application listens."""

    __slots__ = ()


class SourceAddress(_Endpoint):
    """Where a connection comes from."""

    __slots__ = ()


class ApplicationAddress(_Endpoint):
    """Where an application listens."""

    __slots__ = ()
