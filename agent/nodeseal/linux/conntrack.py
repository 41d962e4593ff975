"""What conntrack remembers of connections. Functions here are to be called inside the namespace."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from nodeseal.linux.errors import LinuxError
from nodeseal.mesh.address import Address

Endpoint = tuple[Address, int]


def marked_connections(mark: int) -> set[tuple[Endpoint, Endpoint]]:
    """(dialler's end, end that it dialled) of each connection whose entry has this mark. Raises LinuxError."""
    try:
        with NFCTSocket(nfgen_family=socket.AF_UNSPEC) as conntrack:  # it would list IPv4 alone
            entries = list(conntrack.dump(mark=mark))
    except (NetlinkError, OSError) as error:
        raise LinuxError(f"cannot list conntrack's entries (nf_conntrack_netlink): {error}") from None
    return {_ends(entry.get_attr("CTA_TUPLE_ORIG")) for entry in entries}


def _ends(original: Any) -> tuple[Endpoint, Endpoint]:
    ip, ports = original.get_attr("CTA_TUPLE_IP"), original.get_attr("CTA_TUPLE_PROTO")
    version = 4 if ip.get_attr("CTA_IP_V4_SRC") else 6
    source, destination = (ip_address(ip.get_attr(f"CTA_IP_V{version}_{end}")) for end in ("SRC", "DST"))
    return (source, ports.get_attr("CTA_PROTO_SRC_PORT")), (destination, ports.get_attr("CTA_PROTO_DST_PORT"))
